package keystore_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
)

// TestReplicaKeepsTheSourcesKeys commits a replica of a directory and compares
// the two, file by file.
func TestReplicaKeepsTheSourcesKeys(t *testing.T) {
	source, b := filled(t)
	dir := t.TempDir()
	replica, err := keystore.NewReplica(keystore.Replica{
		Roots: b.Roots(), TempCAKey: keys.NewSecret(readFile(t, source, "tmp-ca.key")), Domain: "replica.example.com", Info: b.Info(),
	}, clock())
	if err != nil {
		t.Fatal(err)
	}
	if err := open(t, dir, nil).Commit(t.Context(), replica); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"root-ca.key", "root-k256.key", "tmp-ca.key", "bootstrap-info.json"} {
		if !bytes.Equal(readFile(t, dir, name), readFile(t, source, name)) {
			t.Errorf("%s is not the source's", name)
		}
	}
	for _, name := range []string{"rpc.key", "rpc.crt"} {
		if bytes.Equal(readFile(t, dir, name), readFile(t, source, name)) {
			t.Errorf("%s is the source's, want the replica's own", name)
		}
	}
	if got := open(t, dir, nil).Domain(); got != "replica.example.com" {
		t.Errorf("Domain = %q, want replica.example.com", got)
	}
}

func TestReplicaWithoutARecordHasSevenFiles(t *testing.T) {
	source, b := filled(t)
	dir := t.TempDir()
	replica, err := keystore.NewReplica(keystore.Replica{
		Roots: b.Roots(), TempCAKey: keys.NewSecret(readFile(t, source, "tmp-ca.key")), Domain: testDomain,
	}, clock())
	if err != nil {
		t.Fatal(err)
	}
	if err := open(t, dir, nil).Commit(t.Context(), replica); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "bootstrap-info.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a record was made up: %v", err)
	}
	if s := open(t, dir, nil); !s.Complete() || s.Info() != nil {
		t.Errorf("Complete, Info = %t, %v, want true, nil", s.Complete(), s.Info())
	}
}

func TestNewReplicaRefusals(t *testing.T) {
	source, b := filled(t)
	temp := readFile(t, source, "tmp-ca.key")
	tests := []struct {
		name   string
		change func(*keystore.Replica)
		want   string
	}{
		{"no temporary CA key", func(r *keystore.Replica) { r.TempCAKey = keys.Secret{} }, "reading the temporary CA's key"},
		{"a temporary CA key in another form", func(r *keystore.Replica) {
			r.TempCAKey = keys.NewSecret(bytes.ReplaceAll(temp, []byte("PRIVATE"), []byte("EC PRIVATE")))
		}, "reading the temporary CA's key"},
		{"a record of other roots", func(r *keystore.Replica) { r.Roots = newRoots(t) }, "bootstrap record is about other root keys"},
		{"no domain", func(r *keystore.Replica) { r.Domain = "" }, "domain: must not be empty"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := keystore.Replica{Roots: b.Roots(), TempCAKey: keys.NewSecret(temp), Domain: testDomain, Info: b.Info()}
			tt.change(&r)
			got, err := keystore.NewReplica(r, clock())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("NewReplica = %v, %v, want an error with %q", got, err, tt.want)
			}
		})
	}
}
