package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// sealKind is one seal of a test: its section, the environment that it needs and
// what it is called in the files.
type sealKind struct {
	name, stanza string
	section      func(testing.TB, *seals) (section string, env []string)
}

func sealKinds() []sealKind {
	return []sealKind{
		{"a passphrase in a file", "teekms-passphrase", func(t testing.TB, s *seals) (string, []string) { return s.passphrase(t), nil }},
		{"a passphrase from the service manager", "teekms-passphrase", func(t testing.TB, s *seals) (string, []string) {
			section, env := s.credential(t)
			return section, []string{env}
		}},
		{"a TPM", "teekms-tpm", func(t testing.TB, s *seals) (string, []string) { return s.withTPM(t), nil }},
		{"a guest agent", "teekms-guest-agent", func(t testing.TB, s *seals) (string, []string) {
			section, env := s.withAgent(t)
			return section, []string{env}
		}},
	}
}

// bootstraps are the ways in which a KMS comes by its keys.
var bootstraps = map[string]func(*testing.T, *kmsDir, []string){
	"dstack-onboard": func(t *testing.T, k *kmsDir, env []string) { k.fill(t, exampleDomain, env...) },
	"dstack-kms": func(t *testing.T, k *kmsDir, env []string) {
		env = append(slices.Clone(env), "DSTACK_KMS_CORE_ONBOARD_AUTO_BOOTSTRAP_DOMAIN="+exampleDomain)
		if code, _, stderr := runCmd(t, command(t, env, "dstack-kms", "--config", k.Config)); code != 0 {
			t.Fatalf("bootstrap: status %d\n%s", code, stderr)
		}
	},
	"the API": func(t *testing.T, k *kmsDir, env []string) {
		p := startCmd(t, command(t, env, "dstack-kms", "--config", k.Config))
		p.ready(t, http.DefaultClient, k.URL("http")+"/health")
		checkBootstrapReply(t, k, post(t, k.URL("http")+bootstrapPath, exampleRequest).body)
		if a := get(t, http.DefaultClient, k.URL("http")+"/finish"); a.body != "OK" {
			t.Fatalf("/finish = %d %s", a.StatusCode, a.body)
		}
		if code := p.wait(t, patience); code != 0 {
			t.Fatalf("exit status %d after Finish\n%s", code, p.stderr)
		}
	},
}

// TestSealedLife takes a KMS through its life with every seal and every way of
// bootstrapping: what it makes is sealed, it serves, and what escrow opens is a
// plain key directory that gives the same keys.
func TestSealedLife(t *testing.T) {
	t.Parallel()
	for _, seal := range sealKinds() {
		for _, how := range slices.Sorted(maps.Keys(bootstraps)) {
			t.Run(seal.name+", bootstrap by "+how, func(t *testing.T) {
				t.Parallel()
				s := newSeals(t)
				section, env := seal.section(t, s)
				k := newKMS(t, "", "")
				k.configure(t, section, s.escrow(t), devAuthority)
				bootstraps[how](t, k, env)
				k.checkSealed(t, "teekms-file", "teekms-escrow", seal.stanza, "X25519")

				p, client := k.serve(t, exampleDomain, env...)
				if got := weakenings(t, client, k); strings.Contains(got, "unsealed_keys") {
					t.Errorf("insecure_settings = %s, want no unsealed_keys", got)
				}
				if strings.Contains(p.stderr.String(), "canary") {
					t.Errorf("the log shows the passphrase:\n%s", p.stderr)
				}
				keys := k.appKeys(t, exampleDomain, k)
				if code := p.terminate(t); code != 0 {
					t.Errorf("exit status %d, want 0", code)
				}
				// Another process opens what this one sealed.
				_, _ = k.serve(t, exampleDomain, env...)
				if got := k.appKeys(t, exampleDomain, k); fmt.Sprint(got) != fmt.Sprint(keys) {
					t.Error("after a restart the KMS derives other keys")
				}

				plain := newReplica(t, k, devAuthority)
				plain.Certs = k.unsealed(t, s)
				plain.write(t, "", devAuthority)
				_, client = plain.serve(t, exampleDomain)
				if got := weakenings(t, client, plain); !strings.Contains(got, "unsealed_keys") {
					t.Errorf("insecure_settings of a plain directory = %s, want unsealed_keys among them", got)
				}
				if got := plain.appKeys(t, exampleDomain, k); fmt.Sprint(got) != fmt.Sprint(keys) {
					t.Error("the plain copy derives other keys than the sealed directory")
				}
			})
		}
	}
}

// TestSealedByAll bootstraps with every seal at once, and opens with each alone.
func TestSealedByAll(t *testing.T) {
	t.Parallel()
	s := newSeals(t)
	agentSection, agent := s.withAgent(t)
	k := newKMS(t, "", "")
	k.configure(t, s.passphrase(t), s.withTPM(t), agentSection, s.escrow(t), devAuthority)
	k.fill(t, exampleDomain, agent)
	k.checkSealed(t, "teekms-file", "teekms-escrow", "teekms-tpm", "teekms-guest-agent", "teekms-passphrase", "X25519")
	p, _ := k.serve(t, exampleDomain, agent)
	keys := k.appKeys(t, exampleDomain, k)
	p.terminate(t)
	for _, seal := range sealKinds() {
		section, env := seal.section(t, s)
		k.configure(t, section, devAuthority)
		p, _ := k.serve(t, exampleDomain, env...)
		if got := k.appKeys(t, exampleDomain, k); fmt.Sprint(got) != fmt.Sprint(keys) {
			t.Errorf("opened by %s the KMS derives other keys", seal.name)
		}
		p.terminate(t)
	}
}

// TestSealedReplicas has every pair of a sealed and a plain KMS: what is sealed is
// sealed here, whatever the source's disk looks like.
func TestSealedReplicas(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name            string
		source, replica bool
	}{
		{"both are sealed", true, true},
		{"the source is sealed", true, false},
		{"the replica is sealed", false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ours, theirs := newSeals(t), newSeals(t)
			a := newKMS(t, "", devAuthority)
			if tt.source {
				a.configure(t, theirs.passphrase(t), theirs.escrow(t), devAuthority)
			}
			a.fill(t, exampleDomain)
			a.serve(t, exampleDomain)
			b := newReplica(t, a, devAuthority)
			if tt.replica {
				b.configure(t, ours.withTPM(t), ours.escrow(t), devAuthority)
			}
			p := b.onboarding(t, "dstack-kms")
			if got := b.onboardFrom(t, a.URL("https")); got.StatusCode != http.StatusOK {
				t.Fatalf("Onboard = %d %s, want 200", got.StatusCode, got.body)
			}
			if finished := post(t, b.URL("http")+"/prpc/Onboard.Finish?json", ""); finished.StatusCode != http.StatusOK {
				t.Fatalf("Finish = %d %s, want 200", finished.StatusCode, finished.body)
			}
			if code := p.wait(t, patience); code != 0 {
				t.Fatalf("exit status %d after Finish, want 0", code)
			}
			if tt.replica {
				b.checkSealed(t, "teekms-file", "teekms-escrow", "teekms-tpm", "X25519")
			} else {
				checkTutorialCommandsOf(t, b, replicaDomain)
			}
			b.serve(t, replicaDomain)
			if got, want := b.appKeys(t, replicaDomain, a), a.appKeys(t, exampleDomain, a); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Error("the replica derives other keys than its source")
			}
		})
	}
}

// checkTutorialCommandsOf wants a plain key directory.
func checkTutorialCommandsOf(t testing.TB, k *kmsDir, domain string) {
	t.Helper()
	checkKeyDir(t, k.Certs)
	for _, name := range []string{"root-ca", "tmp-ca", "rpc"} {
		shell(t, fmt.Sprintf("cmp <(openssl pkey -in %[1]s/%[2]s.key -pubout) <(openssl x509 -in %[1]s/%[2]s.crt -pubkey -noout)", k.Certs, name))
	}
	if got := parseCertificate(t, k.file(t, "rpc.crt")).DNSNames; !slices.Equal(got, []string{domain}) {
		t.Errorf("rpc.crt is for %q, want %s", got, domain)
	}
}

// TestAdoptedDirectoryIsSealed takes over the directory of another KMS, whose keys
// are open to others, and seals it in place.
func TestAdoptedDirectoryIsSealed(t *testing.T) {
	t.Parallel()
	s := newSeals(t)
	k := newKMS(t, "", devAuthority)
	k.fill(t, exampleDomain)
	var ours map[string][]byte
	if err := json.Unmarshal(k.file(t, "bootstrap-info.json"), &ours); err != nil {
		t.Fatal(err)
	}
	theirs := fmt.Sprintf(`{"ca_pubkey":"%x","k256_pubkey":"%x","quote":"%x","eventlog":"%x"}`,
		ours["ca_pubkey"], ours["k256_pubkey"], ours["quote"], ours["eventlog"])
	for name, content := range map[string]string{"bootstrap-info.json": theirs, "rpc-domain": exampleDomain} {
		if err := os.WriteFile(filepath.Join(k.Certs, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(k.Certs, "rpc.crt")); err != nil {
		t.Fatal(err)
	}
	for _, name := range privateFiles {
		if err := os.Chmod(filepath.Join(k.Certs, name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p, _ := k.serve(t, exampleDomain)
	keys := k.appKeys(t, exampleDomain, k)
	p.terminate(t)

	k.configure(t, s.passphrase(t), s.escrow(t), devAuthority)
	refused := k.refuses(t, "dstack-kms")
	if !strings.Contains(refused, "kmsctl seal add") || !strings.Contains(refused, "root-ca.key") {
		t.Errorf("a plain directory with core.seal: %q, want the file and kmsctl seal add", refused)
	}
	k.kmsctlSeal(t, 0, "add")
	if err := os.Remove(filepath.Join(k.Certs, "rpc-domain")); err != nil {
		t.Fatal(err)
	}
	k.checkSealed(t, "teekms-file", "teekms-escrow", "teekms-passphrase", "X25519")
	_, client := k.serve(t, exampleDomain)
	if got := k.appKeys(t, exampleDomain, k); fmt.Sprint(got) != fmt.Sprint(keys) {
		t.Error("sealed, the adopted directory derives other keys")
	}
	if info := metaOf(t, client, k).BootstrapInfo; info == nil || info.CAPubkey != fmt.Sprintf("%x", ours["ca_pubkey"]) {
		t.Errorf("bootstrap_info = %v, want the peer's record", info)
	}
}

// kmsctlSeal runs a verb of kmsctl seal on k, and wants its exit code.
func (k *kmsDir) kmsctlSeal(t testing.TB, wantCode int, verb string, args ...string) (stdout, stderr string) {
	t.Helper()
	return k.kmsctlSealEnv(t, nil, wantCode, verb, args...)
}

func (k *kmsDir) kmsctlSealEnv(t testing.TB, env []string, wantCode int, verb string, args ...string) (stdout, stderr string) {
	t.Helper()
	code, stdout, stderr := runCmd(t, command(t, env, "kmsctl", append([]string{"seal", verb, "--config", k.Config}, args...)...))
	if code != wantCode {
		t.Fatalf("kmsctl seal %s %q = %d, want %d\n%s%s", verb, args, code, wantCode, stdout, stderr)
	}
	if strings.Contains(stdout+stderr, "canary") {
		t.Errorf("kmsctl seal %s shows the passphrase:\n%s%s", verb, stdout, stderr)
	}
	return stdout, stderr
}

// TestKeysOutliveTheirSeals derives the keys of an application from a plain
// directory, and after every change of its seals again.
func TestKeysOutliveTheirSeals(t *testing.T) {
	t.Parallel()
	s := newSeals(t)
	k := newKMS(t, "", devAuthority)
	k.fill(t, exampleDomain)
	agentSection, agent := s.withAgent(t)
	roots := [][]byte{k.file(t, "root-ca.key"), k.file(t, "root-k256.key")}
	passphrase, tpm, other, escrow := s.passphrase(t), s.withTPM(t), agentSection, s.escrow(t)
	const file, inEscrow = "teekms-file", "teekms-escrow"
	steps := []struct {
		sections []string
		verb     []string
		stanzas  []string // of the files afterwards; none of a verb that is refused
	}{
		{[]string{passphrase}, []string{"add"}, []string{file, "teekms-passphrase"}},
		{[]string{passphrase, tpm, other, escrow}, []string{"add", "tpm"}, []string{file, "teekms-tpm", "teekms-passphrase"}},
		{
			[]string{passphrase, tpm, other, escrow},
			[]string{"add"},
			[]string{file, inEscrow, "teekms-tpm", "teekms-guest-agent", "teekms-passphrase", "X25519"},
		},
		{
			[]string{passphrase, tpm, other, escrow},
			[]string{"remove", "passphrase"},
			[]string{file, inEscrow, "teekms-tpm", "teekms-guest-agent", "X25519"},
		},
		{[]string{tpm}, []string{"rotate"}, []string{file, "teekms-tpm"}},
		{[]string{other, escrow}, []string{"rotate"}, nil},
		{[]string{tpm, other, escrow}, []string{"rotate"}, []string{file, inEscrow, "teekms-tpm", "teekms-guest-agent", "X25519"}},
		{[]string{passphrase}, []string{"rotate"}, nil},
		{[]string{passphrase}, []string{"rotate", "--identity", s.identity}, []string{file, "teekms-passphrase"}},
	}
	p, _ := k.serve(t, exampleDomain)
	want := fmt.Sprint(k.appKeys(t, exampleDomain, k))
	p.terminate(t)
	for _, step := range steps {
		k.configure(t, append(step.sections, devAuthority)...)
		before := tree(t, k.Certs)
		if step.stanzas == nil {
			k.kmsctlSealEnv(t, []string{agent}, 1, step.verb[0], step.verb[1:]...)
			if after := tree(t, k.Certs); fmt.Sprint(before) != fmt.Sprint(after) {
				t.Errorf("kmsctl seal %q was refused and changed the directory:\n%v\n%v", step.verb, before, after)
			}
			continue
		}
		k.kmsctlSealEnv(t, []string{agent}, 0, step.verb[0], step.verb[1:]...)
		k.checkSealed(t, step.stanzas...)
		for _, name := range privateFiles {
			if path := filepath.Join(k.Certs, name); before[path] == tree(t, k.Certs)[path] {
				t.Errorf("after kmsctl seal %q %s is as before", step.verb, name)
			}
		}
		p, _ := k.serve(t, exampleDomain, agent)
		if got := fmt.Sprint(k.appKeys(t, exampleDomain, k)); got != want {
			t.Errorf("after kmsctl seal %q the KMS derives other keys", step.verb)
		}
		p.terminate(t)
	}
	k.configure(t, passphrase, escrow, devAuthority)
	k.kmsctlSeal(t, 0, "add")
	opened := k.unsealed(t, s)
	for i, name := range []string{"root-ca.key", "root-k256.key"} {
		if string(mustRead(t, filepath.Join(opened, name))) != string(roots[i]) {
			t.Errorf("%s is another one in the end", name)
		}
	}
}
