package tpm_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"teekms/internal/keys/seal/tpm"
	"teekms/internal/keys/seal/tpm/device"
	"teekms/internal/keys/seal/tpm/swtpmtest"
)

// bus stands between a program and a TPM: it records all that passes and may
// change the answers.
type bus struct {
	path string

	mu       sync.Mutex // guards what follows
	answer   answer
	record   []byte
	commands []tpm2.TPMCC
}

// answer changes the answer to a command, the i-th since it was set, from 1.
// Nothing closes the connection.
type answer func(i int, cc tpm2.TPMCC, b []byte) []byte

// on sets what changes the answers from now on; nil changes nothing. It forgets
// what was recorded.
func (b *bus) on(f answer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer, b.record, b.commands = f, nil, nil
}

func (b *bus) sent() []tpm2.TPMCC {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.commands)
}

func newBus(t testing.TB, tpmSocket string) *bus {
	t.Helper()
	dir, err := os.MkdirTemp("", "bus") //nolint:usetesting // the name of a test makes a path longer than a socket may have
	if err != nil {
		t.Fatal(err)
	}
	b := &bus{path: filepath.Join(dir, "s")}
	l, err := net.Listen("unix", b.path)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { defer conn.Close(); b.pass(conn, tpmSocket) })
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait(); os.RemoveAll(dir) })
	return b
}

func (b *bus) pass(conn net.Conn, tpmSocket string) {
	to, err := net.Dial("unix", tpmSocket)
	if err != nil {
		return
	}
	defer to.Close()
	for buf := make([]byte, 4096); ; {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		cc := tpm2.TPMCC(binary.BigEndian.Uint32(buf[6:]))
		i := b.note(buf[:n], cc)
		to.Write(buf[:n])
		if n, err = to.Read(buf); err != nil {
			return
		}
		out := b.change(i, cc, buf[:n])
		if out == nil {
			return
		}
		conn.Write(out)
	}
}

func (b *bus) note(command []byte, cc tpm2.TPMCC) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.record = append(b.record, command...)
	b.commands = append(b.commands, cc)
	return len(b.commands)
}

func (b *bus) change(i int, cc tpm2.TPMCC, got []byte) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.record = append(b.record, got...)
	if b.answer == nil {
		return got
	}
	return b.answer(i, cc, bytes.Clone(got))
}

func (b *bus) seen(secret []byte) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Contains(b.record, secret)
}

// answering is a socket that answers every command by a code.
func answering(t testing.TB, rc tpm2.TPMRC) string {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				for buf := make([]byte, 4096); ; {
					if _, err := conn.Read(buf); err != nil {
						return
					}
					conn.Write(binary.BigEndian.AppendUint32([]byte{0x80, 1, 0, 0, 0, 10}, uint32(rc)))
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
	return l.Addr().String()
}

func TestBusSeesNoSecret(t *testing.T) {
	p := swtpmtest.Start(t)
	bus := newBus(t, p.Socket())
	s := newSource(t, tpm.Config{Device: bus.path, PCRs: measured()})
	key, args := mustMake(t, s)
	wantKey(t, s, key, args)
	if bus.seen(key.Bytes()) {
		t.Error("the key passed in the clear")
	}
	for _, want := range []tpm2.TPMCC{tpm2.TPMCCCreate, tpm2.TPMCCUnseal} {
		if !slices.Contains(bus.sent(), want) {
			t.Errorf("recorded %v, want %v among them", bus.sent(), want)
		}
	}
}

// TestBusSeesASecretWithoutEncryption is the control: the same object without
// encrypted sessions.
func TestBusSeesASecretWithoutEncryption(t *testing.T) {
	p := swtpmtest.Start(t)
	secret := make([]byte, tpm.KeySize)
	rand.Read(secret)
	policy := make([]byte, 32)
	create := newBus(t, p.Socket())
	onTPM(t, through(p, create), func(c *device.Conn) error {
		srk, err := tpm2.CreatePrimary{
			PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			InPublic:      tpm2.New2B(tpm2.ECCSRKTemplate),
		}.Execute(c)
		if err != nil {
			return err
		}
		_, err = tpm2.Create{
			ParentHandle: tpm2.AuthHandle{Handle: srk.ObjectHandle, Name: srk.Name, Auth: tpm2.PasswordAuth(nil)},
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret}),
			}},
			InPublic: tpm2.New2B(tpm2.TPMTPublic{
				Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
				ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: true},
				AuthPolicy:       tpm2.TPM2BDigest{Buffer: policy},
			}),
		}.Execute(c)
		return err
	})
	if !create.seen(secret) {
		t.Error("the recorder does not see what passes in the clear on Create")
	}

	unseal := newBus(t, p.Socket())
	key, args := mustMake(t, newSource(t, tpm.Config{Device: p.Socket(), PCRs: measured()}))
	onTPM(t, through(p, unseal), func(c *device.Conn) error {
		srk, err := tpm2.CreatePrimary{
			PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			InPublic:      tpm2.New2B(tpm2.ECCSRKTemplate),
		}.Execute(c)
		if err != nil {
			return err
		}
		o, err := tpm2.Load{
			ParentHandle: tpm2.AuthHandle{Handle: srk.ObjectHandle, Name: srk.Name, Auth: tpm2.PasswordAuth(nil)},
			InPrivate:    tpm2.TPM2BPrivate{Buffer: decode(args[4])},
			InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](decode(args[3])),
		}.Execute(c)
		if err != nil {
			return err
		}
		session, _, err := tpm2.PolicySession(c, tpm2.TPMAlgSHA256, 16)
		if err != nil {
			return err
		}
		_, err = tpm2.PolicyPCR{PolicySession: session.Handle(), Pcrs: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
			{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(7, 11, 14)},
		}}}.Execute(c)
		if err != nil {
			return err
		}
		_, err = tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: o.ObjectHandle, Name: o.Name, Auth: session}}.Execute(c)
		return err
	})
	if !unseal.seen(key.Bytes()) {
		t.Error("the recorder does not see what passes in the clear on Unseal")
	}
}

// socketed is where onTPM connects.
type socketed interface{ Socket() string }

type busSocket string

func (b busSocket) Socket() string { return string(b) }

func through(_ *swtpmtest.TPM, b *bus) socketed { return busSocket(b.path) }

// TestBusOffersItsOwnSRK: the bus puts a key whose private half it has in place
// of the TPM's. Nothing is salted to it.
func TestBusOffersItsOwnSRK(t *testing.T) {
	p := swtpmtest.Start(t)
	bus := newBus(t, p.Socket())
	s := newSource(t, tpm.Config{Device: bus.path, PCRs: measured()})
	key, args := mustMake(t, s)
	wantKey(t, s, key, args)

	own, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point := own.PublicKey().Bytes()[1:]
	replaced := false
	bus.on(func(_ int, cc tpm2.TPMCC, b []byte) []byte {
		if cc != tpm2.TPMCCCreatePrimary {
			return b
		}
		// X and Y follow the curve and the scheme, each behind its size.
		i := bytes.Index(b, []byte{0, 0x03, 0, 0x10, 0, 32})
		if i < 0 {
			t.Error("the answer holds no point")
			return b
		}
		copy(b[i+6:], point[:32])
		copy(b[i+6+32+2:], point[32:])
		replaced = true
		return b
	})
	wantRefusal(t, s, args, "this is another TPM than the key was sealed to")
	if !replaced {
		t.Error("the SRK was not replaced")
	}
	if want := []tpm2.TPMCC{tpm2.TPMCCCreatePrimary, tpm2.TPMCCFlushContext}; !slices.Equal(bus.sent(), want) {
		t.Errorf("commands = %v, want %v", bus.sent(), want)
	}
}

// TestBusOffersAnotherKindOfSRK: a key that is not restricted to storage could
// be one that the offerer can read.
func TestBusOffersAnotherKindOfSRK(t *testing.T) {
	p := swtpmtest.Start(t)
	bus := newBus(t, p.Socket())
	bus.on(func(_ int, cc tpm2.TPMCC, b []byte) []byte {
		if i := bytes.Index(b, []byte{0, 0x23, 0, 0x0b}); cc == tpm2.TPMCCCreatePrimary && i >= 0 {
			b[i+7] &^= 0x02 // fixedTPM
		}
		return b
	})
	s := newSource(t, tpm.Config{Device: bus.path, PCRs: measured()})
	if _, _, err := s.Make(t.Context()); err == nil || !strings.Contains(err.Error(), "the TPM derived another kind of SRK than was asked for") {
		t.Errorf("Make() = %v, want a refusal of the SRK", err)
	}
}

// TestBusLiesAboutPCRs: the values that Make seals to are authenticated.
func TestBusLiesAboutPCRs(t *testing.T) {
	p := swtpmtest.Start(t)
	bus := newBus(t, p.Socket())
	bus.on(func(_ int, cc tpm2.TPMCC, b []byte) []byte {
		if cc == tpm2.TPMCCPCRRead {
			b[len(b)/2] ^= 1
		}
		return b
	})
	s := newSource(t, tpm.Config{Device: bus.path, PCRs: measured()})
	if _, _, err := s.Make(t.Context()); err == nil || !strings.Contains(err.Error(), "reading PCRs: ") {
		t.Errorf("Make() = %v, want a refusal of what was read", err)
	}
	wantKeyless(t, p)
}

// TestBusCorruptsAnswers: whatever the bus makes of the answers, there is the
// key or an error, and no panic.
func TestBusCorruptsAnswers(t *testing.T) {
	p := swtpmtest.Start(t)
	bus := newBus(t, p.Socket())
	key, args := mustMake(t, newSource(t, tpm.Config{Device: p.Socket(), PCRs: measured()}))
	// A size that is too large is waited for.
	s := newSource(t, tpm.Config{Device: bus.path, PCRs: measured(), Timeout: 80 * time.Millisecond})
	var sizes []int
	bus.on(func(_ int, _ tpm2.TPMCC, b []byte) []byte { sizes = append(sizes, len(b)); return b })
	wantKey(t, s, key, args)
	bus.on(nil)
	refused := 0
	for n, size := range sizes {
		for at := 0; at < size; at += 1 + at/10 {
			bus.on(func(i int, _ tpm2.TPMCC, b []byte) []byte {
				if i == n+1 && at < len(b) {
					b[at] ^= 0xff
				}
				return b
			})
			got, err := s.Find(t.Context(), args)
			if err == nil && !got.Equal(key) {
				t.Errorf("Find(answer %d, byte %d) = another key", n+1, at)
			}
			if err != nil {
				refused++
			}
		}
	}
	t.Logf("%d corrupt answers were refused", refused)
	if refused < 20 {
		t.Errorf("%d corrupt answers were refused, want more", refused)
	}
}

// TestTPMThatDies dies after every number of commands.
func TestTPMThatDies(t *testing.T) {
	p := swtpmtest.Start(t)
	s := newSource(t, tpm.Config{Device: p.Socket(), PCRs: measured()})
	_, args := mustMake(t, s)
	for n := 1; ; n++ {
		bus := newBus(t, p.Socket())
		bus.on(func(i int, _ tpm2.TPMCC, b []byte) []byte {
			if i == n {
				return nil
			}
			return b
		})
		_, err := newSource(t, tpm.Config{Device: bus.path, PCRs: measured()}).Find(t.Context(), args)
		if err == nil {
			if n < 6 {
				t.Errorf("Find(dies after %d commands) = nil", n)
			}
			return
		}
		if !strings.Contains(err.Error(), "the TPM closed the connection without an answer") {
			t.Errorf("Find(dies after %d commands) = %v, want that it closed", n, err)
		}
	}
}
