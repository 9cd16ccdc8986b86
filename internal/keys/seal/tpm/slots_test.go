package tpm_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"teekms/internal/keys/seal/tpm"
	"teekms/internal/keys/seal/tpm/device"
	"teekms/internal/keys/seal/tpm/swtpmtest"
)

const (
	childEnv  = "TEEKMS_TPM_TEST_CHILD"
	socketEnv = "TEEKMS_TPM_TEST_SOCKET"
	// nobody is a user who owns nothing.
	nobody = 65534
)

// child is what the test program does when it is started by a test.
func child(mode, socket string) int {
	s, err := tpm.New(tpm.Config{Device: socket, PCRs: measured()})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	if mode == "nobody" && os.Geteuid() == 0 {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody)); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	for { // until it is killed
		key, args, err := s.Make(context.Background())
		if err == nil {
			var again interface{ Len() int }
			again, err = s.Find(context.Background(), args)
			_, _ = key, again
		}
		if mode == "nobody" || err != nil {
			fmt.Println(err)
			return 0
		}
	}
}

func startChild(t *testing.T, mode, socket string) (*exec.Cmd, *strings.Builder) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+mode, socketEnv+"="+socket)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, &out
}

// loaded lists the objects and sessions in the TPM.
func loaded(t testing.TB, p *swtpmtest.TPM) []tpm2.TPMHandle {
	t.Helper()
	var all []tpm2.TPMHandle
	onTPM(t, p, func(c *device.Conn) error {
		for _, first := range []uint32{0x80000000, 0x02000000, 0x03000000} {
			rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(c)
			if err != nil {
				return err
			}
			list, err := rsp.CapabilityData.Data.Handles()
			if err != nil {
				return err
			}
			for _, h := range list.Handle {
				if uint32(h)>>24 == first>>24 || first == 0x02000000 {
					all = append(all, h)
				}
			}
		}
		return nil
	})
	return all
}

// wantKeyless fails when anything is left in the TPM.
func wantKeyless(t testing.TB, p *swtpmtest.TPM) {
	t.Helper()
	if left := loaded(t, p); len(left) != 0 {
		t.Errorf("left in the TPM: %x, want nothing", left)
	}
}

func TestNothingIsLeft(t *testing.T) {
	p, other := swtpmtest.Start(t), swtpmtest.Start(t)
	s := newSource(t, tpm.Config{Device: p.Socket(), PCRs: measured()})
	key, args := mustMake(t, s)
	wantKeyless(t, p)
	_, foreign := mustMake(t, newSource(t, tpm.Config{Device: other.Socket(), PCRs: measured()}))
	damaged := edit(args, 4, func(b []byte) []byte { b[40] ^= 1; return b })
	for range 10 { // a TPM has three slots
		wantKey(t, s, key, args)
		mustMake(t, s)
		wantRefusal(t, s, foreign, "another TPM")
		wantRefusal(t, s, damaged, "damaged")
	}
	wantKeyless(t, p)
	p.Measure(14, "x")
	for range 10 {
		wantRefusal(t, s, args, "TPM policy does not hold")
	}
	wantKeyless(t, p)
}

// TestCanceledAnywhere cancels after every number of commands.
func TestCanceledAnywhere(t *testing.T) {
	p := swtpmtest.Start(t)
	_, args := mustMake(t, newSource(t, tpm.Config{Device: p.Socket(), PCRs: measured()}))
	canceled := 0
	for n := 1; ; n++ {
		bus := newBus(t, p.Socket())
		ctx, cancel := context.WithCancel(t.Context())
		bus.on(func(i int, _ tpm2.TPMCC, b []byte) []byte {
			if i == n {
				cancel()
			}
			return b
		})
		s := newSource(t, tpm.Config{Device: bus.path, PCRs: measured()})
		_, err := s.Find(ctx, args)
		cancel()
		wantKeyless(t, p)
		if err == nil {
			break
		}
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Find(canceled after %d commands) = %v, want %v", n, err, context.Canceled)
		}
		canceled++
	}
	if canceled < 5 {
		t.Errorf("canceled after %d numbers of commands, want more", canceled)
	}
}

// TestLeftovers: what killed programs left in a TPM without a resource manager
// makes room for the living.
func TestLeftovers(t *testing.T) {
	p := swtpmtest.Start(t)
	s := newSource(t, tpm.Config{Device: p.Socket(), PCRs: measured()})
	key, args := mustMake(t, s)
	onTPM(t, p, func(c *device.Conn) error {
		for range 3 {
			_, err := tpm2.CreatePrimary{
				PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
				InPublic:      tpm2.New2B(tpm2.ECCSRKTemplate),
			}.Execute(c)
			if err != nil {
				return err
			}
			if _, _, err := tpm2.HMACSession(c, tpm2.TPMAlgSHA256, 16); err != nil {
				return err
			}
		}
		return nil
	})
	if n := len(loaded(t, p)); n != 6 {
		t.Fatalf("%d objects and sessions are loaded, want 6", n)
	}
	wantKey(t, s, key, args)
	wantKeyless(t, p)
}

func TestKilledAnywhere(t *testing.T) {
	p := swtpmtest.Start(t)
	s := newSource(t, tpm.Config{Device: p.Socket(), PCRs: measured()})
	key, args := mustMake(t, s)
	random, left := rand.New(rand.NewPCG(1, 2)), 0
	for range 15 {
		cmd, out := startChild(t, "loop", p.Socket())
		time.Sleep(40*time.Millisecond + time.Duration(random.IntN(40))*time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Errorf("child ended by itself: %s", out)
		}
		left += len(loaded(t, p))
	}
	wantKey(t, s, key, args)
	t.Logf("%d objects and sessions were seen left over after kills", left)
}

func TestManyAtOnce(t *testing.T) {
	p := swtpmtest.Start(t)
	boot(p)
	s := newSource(t, tpm.Config{Device: p.Socket(), PCRs: measured()})
	key, args := mustMake(t, s)
	cmd, out := startChild(t, "loop", p.Socket()) // another process, too
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 5 {
				got, err := s.Find(t.Context(), args)
				if err != nil || !got.Equal(key) {
					t.Errorf("Find() = %v, want the key", err)
				}
				if _, _, err := s.Make(t.Context()); err != nil {
					t.Errorf("Make() = %v", err)
				}
			}
		})
	}
	all.Wait()
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Errorf("child ended by itself: %s", out)
	}
}

// TestNoAccess runs as a user who may not open the TPM: root, who may open
// anything, becomes another one for it.
func TestNoAccess(t *testing.T) {
	p := swtpmtest.Start(t)
	if err := errors.Join(os.Chmod(filepath.Dir(p.Socket()), 0o755), os.Chmod(p.Socket(), 0)); err != nil {
		t.Fatal(err)
	}
	cmd, out := startChild(t, "nobody", p.Socket())
	if err := cmd.Wait(); err != nil {
		t.Fatalf("child = %v: %s", err, out)
	}
	if want := p.Socket() + " may not be opened: put the service's user into the group tss, and the device into the unit's DeviceAllow="; !strings.Contains(out.String(), want) {
		t.Errorf("Make() as nobody = %s, want %q", out, want)
	}
}
