package keystore_test

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"teekms/internal/durable/durabletest"
	"teekms/internal/keys/keystore"
)

func TestResealRefuses(t *testing.T) {
	here, there := sealTo(t, "here"), sealTo(t, "there")
	foreign, _ := filledSealed(t, here)
	tests := []struct {
		name      string
		meanwhile func(t *testing.T, d *durabletest.Disk)
		want      string
	}{
		{"resealed by another process", func(t *testing.T, d *durabletest.Disk) {
			s, err := openSealed(d.FS(durabletest.Plan{}), here)
			if err == nil {
				err = s.Reseal(t.Context(), here)
			}
			if err != nil {
				t.Fatal(err)
			}
		}, "was written by another process since it was opened"},
		{"a root key of another KMS", func(_ *testing.T, d *durabletest.Disk) {
			d.Put(crashDir+"/root-k256.key", []byte(foreign.Files(crashDir)["root-k256.key"]), 0o600)
		}, "root-k256.key was written by another process"},
		{"a key missing", func(_ *testing.T, d *durabletest.Disk) { d.Delete(crashDir + "/rpc.key") }, "reading /etc/kms/certs/rpc.key: no such file"},
		{"a key with another name", func(_ *testing.T, d *durabletest.Disk) {
			d.Link(crashDir+"/root-ca.key", "/etc/backup")
		}, "root-ca.key has 2 names (hard links)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, _ := filledSealed(t, here)
			s, err := openSealed(d.FS(durabletest.Plan{}), here)
			if err != nil {
				t.Fatal(err)
			}
			tt.meanwhile(t, d)
			before := d.Fingerprint()
			if err := s.Reseal(t.Context(), there); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Reseal = %v, want %s", err, tt.want)
			}
			if d.Fingerprint() != before {
				t.Error("a refused resealing has changed the directory")
			}
		})
	}
	empty := open(t, crashDir, durabletest.NewDisk(crashDir).FS(durabletest.Plan{}))
	if err := empty.Reseal(t.Context(), here); err == nil || !strings.Contains(err.Error(), "key directory is empty") {
		t.Errorf("Reseal of an empty directory = %v, want empty", err)
	}
}

// unwipeable fails to overwrite.
type unwipeable struct{ *durabletest.FS }

func (unwipeable) Overwrite(string) error { return syscall.EIO }

func TestOldKeysThatStayAreTold(t *testing.T) {
	here, there := sealTo(t, "here"), sealTo(t, "there")
	d, b := filledDisk(t, crashDir)
	secret := secretsOf(keystore.PlainFiles(b))
	s := open(t, crashDir, unwipeable{d.FS(durabletest.Plan{})})
	if err := s.Reseal(t.Context(), here); !errors.Is(err, keystore.ErrNotWiped) || !errors.Is(err, syscall.EIO) {
		t.Fatalf("Reseal = %v, want ErrNotWiped", err)
	}
	if found := secret.in(d.Contents()); len(found) != 4 {
		t.Errorf("in the clear: %v, want all four", found)
	}
	before := d.Fingerprint()
	if err := s.Reseal(t.Context(), there); err == nil || !strings.Contains(err.Error(), "/etc/kms/certs/.stage is left of an earlier write") {
		t.Errorf("Reseal once more = %v, want what is left told", err)
	}
	if d.Fingerprint() != before {
		t.Error("a refused resealing has changed the directory")
	}
	// It is sealed all the same, and who opens it finishes.
	again, err := openSealed(d.FS(durabletest.Plan{}), here)
	if err != nil {
		t.Fatal(err)
	}
	if err := completeWith(again, d, b); err != nil {
		t.Error(err)
	}
	if found := secret.in(d.Contents()); len(found) != 0 {
		t.Errorf("in the clear after opening: %v", found)
	}
	if err := again.Reseal(t.Context(), there); err != nil {
		t.Errorf("Reseal = %v, want nil", err)
	}
}

func TestRecoveryOfAResealingGuessesNothing(t *testing.T) {
	here := sealTo(t, "here")
	d, b := filledDisk(t, crashDir)
	foreign, _ := filledDisk(t, crashDir)
	dry := d.Clone().FS(durabletest.Plan{})
	if err := open(t, crashDir, dry).Reseal(t.Context(), here); err != nil {
		t.Fatal(err)
	}
	step := 0
	for i, call := range dry.Trace() {
		if call == "rename "+crashDir+"/.stage/rpc.key.old" {
			step = i + 1
		}
	}
	_ = open(t, crashDir, d.FS(durabletest.Plan{Step: step, Fault: durabletest.CrashAfter})).Reseal(t.Context(), here) // the error is the crash
	d = d.Crash(durabletest.Kept())
	if s, err := openSealed(d.Clone().FS(durabletest.Plan{}), here); err != nil || !s.Roots().Equal(b.Roots()) || s.RolledForward() {
		t.Fatalf("Open = %v, want resealed", err)
	}
	tests := []struct {
		name   string
		damage func(d *durabletest.Disk)
		want   string
	}{
		{"another root key in its place", func(d *durabletest.Disk) {
			d.Put(crashDir+"/root-ca.key", []byte(foreign.Files(crashDir)["root-ca.key"]), 0o600)
		}, "root-ca.key: neither the file that was there before"},
		{"a staged key has changed", func(d *durabletest.Disk) { d.Put(crashDir+"/.stage/root-k256.key", []byte("x"), 0o600) }, "root-k256.key: damaged after it was written"},
		{"a staged key is gone", func(d *durabletest.Disk) { d.Delete(crashDir + "/.stage/rpc.key") }, "rpc.key: damaged after it was written"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := d.Clone()
			tt.damage(d)
			before := d.Fingerprint()
			if _, err := openSealed(d.FS(durabletest.Plan{}), here); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open = %v, want %s", err, tt.want)
			}
			if d.Fingerprint() != before {
				t.Error("the refused directory has changed")
			}
		})
	}
	// Without its marker an old file is never removed.
	old := ""
	for name := range d.Files(crashDir) {
		if strings.HasSuffix(name, ".old") {
			old = name
		}
	}
	d.Put(crashDir+"/.stage/commit", []byte("torn"), 0o600)
	if _, err := openSealed(d.FS(durabletest.Plan{}), here); err == nil {
		t.Error("Open without marker = nil, want a refusal")
	}
	if _, there := d.Files(crashDir)[old]; !there || old == "" {
		t.Errorf("%q was removed", old)
	}
}
