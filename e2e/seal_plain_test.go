package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestTheWayBackToPlainFiles runs the commands of docs/seal.md#plain.
func TestTheWayBackToPlainFiles(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../docs/seal.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)\n## Plain\n.*?```sh\n(.*?)```").FindSubmatch(doc)
	if found == nil {
		t.Fatal("docs/seal.md has no commands in its section Plain")
	}
	s := newSeals(t)
	k := newKMS(t, "", "")
	k.configure(t, s.passphrase(t), devAuthority)
	k.fill(t, exampleDomain)
	p, _ := k.serve(t, exampleDomain)
	keys := k.appKeys(t, exampleDomain, k)
	p.terminate(t)

	// There was no escrow: it is made for this.
	k.configure(t, s.passphrase(t), s.escrow(t), devAuthority)
	k.kmsctlSeal(t, 0, "add", "escrow")
	plain := filepath.Join(k.Dir, "plain")
	commands := strings.NewReplacer("/etc/kms/certs", k.Certs, "/etc/kms/plain", plain, "escrow.txt", s.identity).Replace(string(found[1]))
	shell(t, "set -e\n"+commands)

	k.Certs = plain
	k.write(t, "", devAuthority)
	checkKeyDir(t, plain)
	_, client := k.serve(t, exampleDomain)
	if got := weakenings(t, client, k); !strings.Contains(got, "unsealed_keys") {
		t.Errorf("insecure_settings = %s, want unsealed_keys among them", got)
	}
	if got := k.appKeys(t, exampleDomain, k); fmt.Sprint(got) != fmt.Sprint(keys) {
		t.Error("the plain directory gives other keys than the sealed one")
	}
	k.configure(t, s.passphrase(t), devAuthority)
	k.kmsctlSeal(t, 0, "add")
	k.checkSealed(t, "teekms-file", "teekms-passphrase")
}
