package tpm_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"go.uber.org/goleak"

	"teekms/internal/keys"
	"teekms/internal/keys/seal/tpm"
	"teekms/internal/keys/seal/tpm/device"
	"teekms/internal/keys/seal/tpm/swtpmtest"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(childEnv); mode != "" {
		os.Exit(child(mode, os.Getenv(socketEnv)))
	}
	goleak.VerifyTestMain(m)
}

func newSource(t testing.TB, cfg tpm.Config) *tpm.Source {
	t.Helper()
	s, err := tpm.New(cfg)
	if err != nil {
		t.Fatalf("New() = %v", err)
	}
	return s
}

// measured are the PCRs of these tests, not in order.
func measured() []int { return []int{14, 7, 11} }

// boot measures what the sealed state consists of.
func boot(p *swtpmtest.TPM) {
	p.Measure(7, "secure boot")
	p.Measure(11, "kernel")
	p.Measure(14, "machine owner keys")
}

func mustMake(t testing.TB, s *tpm.Source) (keys.Secret, []string) {
	t.Helper()
	key, args, err := s.Make(t.Context())
	if err != nil {
		t.Fatalf("Make() = %v", err)
	}
	if key.Len() != tpm.KeySize {
		t.Fatalf("Make() = key of %d bytes, want %d", key.Len(), tpm.KeySize)
	}
	return key, args
}

// wantKey fails unless args open and give key.
func wantKey(t testing.TB, s *tpm.Source, key keys.Secret, args []string) {
	t.Helper()
	got, err := s.Find(t.Context(), args)
	if err != nil {
		t.Fatalf("Find() = %v", err)
	}
	if !got.Equal(key) {
		t.Error("Find() = another key than was made")
	}
}

// wantRefusal fails unless args are refused in these words.
func wantRefusal(t testing.TB, s *tpm.Source, args []string, want string) {
	t.Helper()
	key, err := s.Find(t.Context(), args)
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Find() = %v, want %q", err, want)
	}
	if key.Len() != 0 {
		t.Error("Find() = a key beside its error")
	}
}

func TestLife(t *testing.T) {
	p := swtpmtest.Start(t)
	boot(p)
	s := newSource(t, tpm.Config{Device: p.Socket(), PCRs: measured()})
	key, args := mustMake(t, s)
	if got, want := s.Describe(args), "PCRs 7, 11, 14 of SHA-256"; got != want {
		t.Errorf("Describe() = %q, want %q", got, want)
	}
	for i, a := range args {
		if a == "" || strings.ContainsFunc(a, func(r rune) bool { return r <= ' ' || r > '~' }) {
			t.Errorf("args[%d] = %q, want printable ASCII without spaces", i, a)
		}
	}
	wantKey(t, s, key, args)
	again, _ := mustMake(t, s)
	if again.Equal(key) {
		t.Error("Make() twice = the same key")
	}

	p.Measure(12, "what nothing is sealed to")
	wantKey(t, s, key, args)
	p.Measure(14, "another machine owner key")
	wantRefusal(t, s, args, "TPM policy does not hold (PCR 14 of SHA-256 is not what it was)")
	if _, err := s.Find(t.Context(), args); !errors.Is(err, tpm2.TPMRCPolicyFail) || !strings.HasSuffix(err.Error(), "is not what it was) [TPM_RC_POLICY_FAIL]") {
		t.Errorf("Find() = %v, want the name of the code alone after the words", err)
	}

	p.Restart()
	wantRefusal(t, s, args, "TPM policy does not hold (PCRs 7, 11, 14 of SHA-256 are not what they were)")
	boot(p)
	wantKey(t, s, key, args)
	// Other PCRs in the configuration do not keep it from what was sealed.
	wantKey(t, newSource(t, tpm.Config{Device: p.Socket(), PCRs: []int{1}}), key, args)

	p.Restart()
	p.Measure(7, "secure boot")
	p.Measure(11, "another kernel")
	p.Measure(14, "machine owner keys")
	_, err := s.Find(t.Context(), args)
	if !errors.Is(err, tpm2.TPMRCPolicyFail) || !strings.Contains(err.Error(), "(PCR 11 of SHA-256 is not what it was)") {
		t.Errorf("Find(other kernel) = %v, want %v for PCR 11", err, tpm2.TPMRCPolicyFail)
	}
}

func TestAnotherTPM(t *testing.T) {
	p, other := swtpmtest.Start(t), swtpmtest.Start(t)
	boot(p)
	boot(other)
	_, args := mustMake(t, newSource(t, tpm.Config{Device: p.Socket(), PCRs: measured()}))
	s := newSource(t, tpm.Config{Device: other.Socket(), PCRs: measured()})
	wantRefusal(t, s, args, "this is another TPM than the key was sealed to, or it was cleared since")
	// With the other's SRK named instead, the TPM does not take the object.
	_, theirs := mustMake(t, s)
	forged := slices.Clone(args)
	forged[2] = theirs[2]
	wantRefusal(t, s, forged, "what was sealed is damaged, or it is of another TPM")
}

func TestEveryPCR(t *testing.T) {
	p := swtpmtest.Start(t)
	boot(p)
	var all []int
	for i := range tpm.MaxPCR + 1 {
		all = append(all, i)
	}
	s := newSource(t, tpm.Config{Device: p.Socket(), PCRs: all})
	key, args := mustMake(t, s)
	wantKey(t, s, key, args)
	p.Measure(9, "x")
	wantRefusal(t, s, args, "(PCR 9 of SHA-256 is not what it was)")
}

// TestEditedSelection: what is stored is not believed; the TPM holds the policy.
func TestEditedSelection(t *testing.T) {
	p := swtpmtest.Start(t)
	boot(p)
	s := newSource(t, tpm.Config{Device: p.Socket(), PCRs: measured()})
	key, args := mustMake(t, s)
	// The hints of PCRs 7 and 11 alone, and those of four PCRs.
	smaller, larger := edit(args, 1, func(b []byte) []byte { return b[:16] }), edit(args, 1, func(b []byte) []byte { return append(b, make([]byte, 8)...) })
	smaller[0], larger[0] = "sha256:7+11", "sha256:7+11+14+15"
	const notOver = "TPM policy does not hold (it is not over PCRs "
	for range 2 {
		wantRefusal(t, s, smaller, notOver+"7, 11 of SHA-256, or what is stored of it was changed")
		wantRefusal(t, s, larger, notOver+"7, 11, 14, 15 of SHA-256, or what is stored of it was changed")
		wantKey(t, s, key, args)
	}
	p.Measure(14, "x") // which the smaller set leaves out
	wantRefusal(t, s, smaller, "TPM policy does not hold")

	// The policy of the smaller set in the public area: the object is another.
	p.Restart()
	boot(p)
	_, two := mustMake(t, newSource(t, tpm.Config{Device: p.Socket(), PCRs: []int{7, 11}}))
	p.Measure(14, "x")
	grafted := edit(smaller, 3, func(b []byte) []byte {
		copy(b[10:42], decode(two[3])[10:42])
		return b
	})
	wantRefusal(t, s, grafted, "what was sealed is damaged")
}

func decode(arg string) []byte {
	b, err := base64.RawStdEncoding.DecodeString(arg)
	if err != nil {
		panic(err)
	}
	return b
}

// edit changes one of the args that are base64.
func edit(args []string, i int, f func([]byte) []byte) []string {
	args = slices.Clone(args)
	args[i] = base64.RawStdEncoding.EncodeToString(f(decode(args[i])))
	return args
}

// TestEveryByteCounts flips every byte of what is stored. The hints alone are
// no part of the seal: they only choose words.
func TestEveryByteCounts(t *testing.T) {
	p := swtpmtest.Start(t)
	boot(p)
	s := newSource(t, tpm.Config{Device: p.Socket(), PCRs: measured()})
	key, args := mustMake(t, s)
	for i, name := range map[int]string{2: "SRK name", 3: "public area", 4: "private area"} {
		for at := range decode(args[i]) {
			flipped := edit(args, i, func(b []byte) []byte { b[at] ^= 0x10; return b })
			if got, err := s.Find(t.Context(), flipped); err == nil || got.Len() != 0 {
				t.Errorf("Find(%s, byte %d flipped) = nil, want an error", name, at)
			}
		}
	}
	hints := edit(args, 1, func(b []byte) []byte { b[0] ^= 1; return b })
	wantKey(t, s, key, hints)
	p.Measure(14, "x")
	wantRefusal(t, s, hints, "(PCRs 7, 14 of SHA-256 are not what they were)")
	wantKeyless(t, p)
}

// TestWeakerObjects are objects that a TPM would make, and that open in another
// way than by the PCRs, or elsewhere.
func TestWeakerObjects(t *testing.T) {
	p := swtpmtest.Start(t)
	s := newSource(t, tpm.Config{Device: p.Socket(), PCRs: measured()})
	_, args := mustMake(t, s)
	tests := []struct {
		name string
		at   int // in the public area, whose attributes are bytes 4 to 7
		bit  byte
	}{
		{"opens by a password", 7, 0x40},
		{"can be moved to another TPM", 7, 0x02},
		{"can be moved to another parent", 7, 0x10},
		{"is counted against dictionary attacks", 6, 0x04},
		{"signs, too", 5, 0x04},
		{"is named by another hash", 3, 0x07},
		{"is of another type", 1, 0x2d},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			weak := edit(args, 3, func(b []byte) []byte { b[tt.at] ^= tt.bit; return b })
			wantRefusal(t, s, weak, "the object is not a key that only a policy over PCRs opens")
		})
	}
}

// TestBankThatIsNotActive switches the SHA-256 bank off with the TPM's own
// command, which the library does not have.
func TestBankThatIsNotActive(t *testing.T) {
	p := swtpmtest.Start(t)
	s := newSource(t, tpm.Config{Device: p.Socket(), PCRs: measured()})
	_, args := mustMake(t, s)
	onTPM(t, p, func(c *device.Conn) error {
		_, err := c.Send([]byte{
			0x80, 0x02, 0, 0, 0, 43, 0, 0, 0x01, 0x2b, // PCR_Allocate
			0x40, 0, 0, 0x0c, 0, 0, 0, 9, 0x40, 0, 0, 0x09, 0, 0, 0, 0, 0, // platform, empty password
			0, 0, 0, 2, 0, 4, 3, 0xff, 0xff, 0xff, 0, 0x0b, 3, 0, 0, 0, // SHA-1: all, SHA-256: none
		})
		return err
	})
	p.Restart()
	const want = "the TPM keeps no SHA-256 values of these PCRs: its SHA-256 bank is not active"
	if _, _, err := s.Make(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Make() = %v, want %q", err, want)
	}
	wantRefusal(t, s, args, want)
	wantKeyless(t, p)
}

func TestNewRefuses(t *testing.T) {
	tests := []struct {
		name string
		cfg  tpm.Config
		want string
	}{
		{"no PCRs", tpm.Config{Device: "/dev/tpmrm0"}, "no PCRs: without one, the key would open in any state"},
		{"a PCR below", tpm.Config{Device: "/dev/tpmrm0", PCRs: []int{-1}}, "PCR -1: want 0 to 23"},
		{"a PCR above", tpm.Config{Device: "/dev/tpmrm0", PCRs: []int{24}}, "PCR 24: want 0 to 23"},
		{"a PCR twice", tpm.Config{Device: "/dev/tpmrm0", PCRs: []int{7, 11, 7}}, "PCR 7: named twice"},
		{"no device", tpm.Config{PCRs: []int{7}}, "no TPM is named: want a device such as /dev/tpmrm0, or a socket"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := tpm.New(tt.cfg); err == nil || err.Error() != tt.want {
				t.Errorf("New() = %v, want %q", err, tt.want)
			}
		})
	}
}

func TestDeviceThatIsNone(t *testing.T) {
	dir := t.TempDir()
	s := newSource(t, tpm.Config{Device: dir + "/tpm", PCRs: measured()})
	if _, _, err := s.Make(t.Context()); !errors.Is(err, os.ErrNotExist) || err.Error() != "there is no TPM at "+dir+"/tpm (no vTPM in this machine, or the unit's PrivateDevices= hides it)" {
		t.Errorf("Make(no TPM) = %v, want that there is none", err)
	}
	if err := os.WriteFile(dir+"/tpm", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Make(t.Context()); err == nil || !strings.Contains(err.Error(), "is neither a device nor a unix socket") {
		t.Errorf("Make(file) = %v, want that it is no device", err)
	}
}

// TestSilence: a program that holds the one connection of a software TPM is, to
// us, a TPM that does not answer.
func TestSilence(t *testing.T) {
	p := swtpmtest.Start(t)
	_, args := mustMake(t, newSource(t, tpm.Config{Device: p.Socket(), PCRs: measured()}))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	held, err := device.Open(ctx, p.Socket())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.GetRandom{BytesRequested: 1}).Execute(held); err != nil {
		t.Fatal(err)
	}
	s := newSource(t, tpm.Config{Device: p.Socket(), PCRs: measured(), Timeout: 500 * time.Millisecond})
	begin := time.Now()
	if _, err := s.Find(t.Context(), args); !errors.Is(err, device.ErrSilent) {
		t.Errorf("Find() = %v, want %v", err, device.ErrSilent)
	}
	if _, _, err := s.Make(t.Context()); !errors.Is(err, device.ErrSilent) {
		t.Errorf("Make() = %v, want %v", err, device.ErrSilent)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("two waits took %v, want about 1s", took)
	}
	held.Close()
	if err := p.Reset(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := newSource(t, tpm.Config{Device: p.Socket(), PCRs: measured()}).Make(t.Context()); err != nil {
		t.Errorf("Make() later = %v", err)
	}
}

// TestOwnerPassword sets one with the TPM's own command.
func TestOwnerPassword(t *testing.T) {
	p := swtpmtest.Start(t)
	s := newSource(t, tpm.Config{Device: p.Socket(), PCRs: measured()})
	_, args := mustMake(t, s)
	onTPM(t, p, func(c *device.Conn) error {
		_, err := tpm2.HierarchyChangeAuth{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			NewAuth:    tpm2.TPM2BAuth{Buffer: []byte("password")},
		}.Execute(c)
		return err
	})
	wantRefusal(t, s, args, "the owner hierarchy of the TPM has a password: it must be empty (tpm2_changeauth -c owner)")
}

// TestWords: codes for which an operator can do something are in words.
func TestWords(t *testing.T) {
	tests := []struct {
		rc   tpm2.TPMRC
		want string
	}{
		{tpm2.TPMRCLockout, "the TPM is locked out after wrong passwords"},
		{tpm2.TPMRCBadAuth, "the owner hierarchy of the TPM has a password"},
		{tpm2.TPMRCHierarchy, "the owner hierarchy of the TPM is switched off"},
		{tpm2.TPMRCInitialize, "the TPM was not started by the firmware"},
		{tpm2.TPMRCFailure, "the TPM is in failure mode"},
		{tpm2.TPMRCObjectMemory, "the TPM has no room for another object or session"},
		{tpm2.TPMRCValue, "TPM_RC_VALUE"},
	}
	for _, tt := range tests {
		t.Run(tt.want, func(t *testing.T) {
			s := newSource(t, tpm.Config{Device: answering(t, tt.rc), PCRs: measured()})
			_, _, err := s.Make(t.Context())
			if !errors.Is(err, tt.rc) || !strings.Contains(fmt.Sprint(err), tt.want) {
				t.Errorf("Make() = %v, want %q, %v", err, tt.want, tt.rc)
			}
		})
	}
}

func onTPM(t testing.TB, p socketed, f func(*device.Conn) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := device.Open(ctx, p.Socket())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := f(c); err != nil {
		t.Fatal(err)
	}
}
