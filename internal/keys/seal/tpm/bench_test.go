package tpm_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"teekms/internal/keys/seal/tpm"
	"teekms/internal/keys/seal/tpm/device"
	"teekms/internal/keys/seal/tpm/swtpmtest"
)

// BenchmarkMake seals a key: as Make does, and by the commands that no way
// around leads: deriving the SRK and creating the object, the secret in the
// clear.
func BenchmarkMake(b *testing.B) {
	p := swtpmtest.Start(b)
	s := newSource(b, tpm.Config{Device: p.Socket(), PCRs: measured()})
	b.Run("sealed", func(b *testing.B) {
		for b.Loop() {
			if _, _, err := s.Make(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("bare", func(b *testing.B) {
		for b.Loop() {
			bareMake(b, p)
		}
	})
	roundTrip(b, p)
}

// BenchmarkFind unseals a key: as Find does, and by deriving the SRK, loading
// and unsealing an object without policy, in the clear.
func BenchmarkFind(b *testing.B) {
	p := swtpmtest.Start(b)
	s := newSource(b, tpm.Config{Device: p.Socket(), PCRs: measured()})
	_, args, err := s.Make(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.Run("sealed", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.Find(b.Context(), args); err != nil {
				b.Fatal(err)
			}
		}
	})
	bare := bareMake(b, p)
	b.Run("bare", func(b *testing.B) {
		for b.Loop() {
			bareFind(b, p, bare)
		}
	})
	roundTrip(b, p)
}

// roundTrip measures a command that takes the TPM next to nothing.
func roundTrip(b *testing.B, p *swtpmtest.TPM) {
	b.Run("round trip", func(b *testing.B) {
		ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
		defer cancel()
		c, err := device.Open(ctx, p.Socket())
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		for b.Loop() {
			if _, err := (tpm2.GetRandom{BytesRequested: 8}).Execute(c); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// bareSRK derives the SRK; flush ends it.
func bareSRK(b *testing.B, c *device.Conn) (handle tpm2.AuthHandle, flush func()) {
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(tpm2.ECCSRKTemplate),
	}.Execute(c)
	if err != nil {
		b.Fatal(err)
	}
	return tpm2.AuthHandle{Handle: rsp.ObjectHandle, Name: rsp.Name, Auth: tpm2.PasswordAuth(nil)}, flusher(b, c, rsp.ObjectHandle)
}

func flusher(b *testing.B, c *device.Conn, h tpm2.TPMHandle) func() {
	return func() {
		if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(c); err != nil {
			b.Fatal(err)
		}
	}
}

func bareMake(b *testing.B, p *swtpmtest.TPM) (made *tpm2.CreateResponse) {
	onTPM(b, p, func(c *device.Conn) error {
		srk, flush := bareSRK(b, c)
		defer flush()
		var err error
		made, err = tpm2.Create{
			ParentHandle: srk,
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: make([]byte, tpm.KeySize)}),
			}},
			InPublic: tpm2.New2B(tpm2.TPMTPublic{
				Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
				ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: true, UserWithAuth: true},
			}),
		}.Execute(c)
		return err
	})
	return made
}

func bareFind(b *testing.B, p *swtpmtest.TPM, made *tpm2.CreateResponse) {
	onTPM(b, p, func(c *device.Conn) error {
		srk, flush := bareSRK(b, c)
		defer flush()
		loaded, err := tpm2.Load{ParentHandle: srk, InPrivate: made.OutPrivate, InPublic: made.OutPublic}.Execute(c)
		if err != nil {
			return err
		}
		defer flusher(b, c, loaded.ObjectHandle)()
		_, err = tpm2.Unseal{
			ItemHandle: tpm2.AuthHandle{Handle: loaded.ObjectHandle, Name: loaded.Name, Auth: tpm2.PasswordAuth(nil)},
		}.Execute(c)
		return err
	})
}
