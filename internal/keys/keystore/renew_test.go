package keystore_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509/pkix"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"teekms/internal/durable"
	"teekms/internal/durable/durabletest"
	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
)

func TestRenewRPC(t *testing.T) {
	dir, b := filled(t)
	before := snapshot(t, dir)
	s, err := keystore.Open(t.Context(), keystore.Config{Dir: dir, Domain: "192.0.2.1", Now: func() time.Time { return clock().Add(60 * 24 * time.Hour) }})
	if err != nil {
		t.Fatal(err)
	}
	old := s.RPCCertificate()
	evidence := keys.Extension(keys.ArcAttestation, []byte("evidence"))
	renewed, err := s.RenewRPC(t.Context(), evidence)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"rpc.crt"}, changed(t, dir, before)); diff != "" {
		t.Errorf("changed (-want +got):\n%s", diff)
	}
	if !bytes.Equal(keys.CertificatePEM(renewed.Certificate[0]), readFile(t, dir, "rpc.crt")) || !bytes.Equal(renewed.Certificate[0], s.RPCCertificate().Certificate[0]) {
		t.Error("the certificate returned, the store's and the file's differ")
	}
	if !renewed.PrivateKey.(*ecdsa.PrivateKey).Equal(old.PrivateKey) {
		t.Error("the key has changed")
	}
	if got := renewed.Leaf.NotAfter.Sub(old.Leaf.NotAfter); got != 60*24*time.Hour {
		t.Errorf("it ends %v later, want 60 days", got)
	}
	if len(renewed.Leaf.IPAddresses) != 1 {
		t.Errorf("addresses = %v, want the configured domain", renewed.Leaf.IPAddresses)
	}
	last := renewed.Leaf.Extensions[len(renewed.Leaf.Extensions)-1]
	if diff := cmp.Diff(evidence, pkix.Extension{Id: last.Id, Value: last.Value}); diff != "" {
		t.Errorf("extension (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(eightNames(), list(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	checkWhole(t, dir, b)
}

func TestRenewRPCInMemoryOnly(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EROFS, syscall.EACCES, syscall.ENOSPC, syscall.EIO} {
		t.Run(errno.Error(), func(t *testing.T) {
			disk, _ := filledDisk(t, crashDir)
			before := disk.Files(crashDir)
			dry := disk.Clone().FS(durabletest.Plan{})
			open(t, crashDir, dry)
			core, logs := observer.New(zap.WarnLevel)
			fsys := disk.FS(durabletest.Plan{Step: len(dry.Trace()) + 1, Fault: durabletest.FailOn, Err: errno})
			s, err := keystore.Open(t.Context(), keystore.Config{Dir: crashDir, FS: fsys, Now: clock, Log: zap.New(core)})
			if err != nil {
				t.Fatal(err)
			}
			old := s.RPCCertificate()
			renewed, err := s.RenewRPC(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(renewed.Certificate[0], old.Certificate[0]) || !bytes.Equal(renewed.Certificate[0], s.RPCCertificate().Certificate[0]) {
				t.Error("the store does not serve a new certificate")
			}
			if diff := cmp.Diff(before, disk.Files(crashDir)); diff != "" {
				t.Errorf("files (-before +after):\n%s", diff)
			}
			if logs.FilterMessage("the RPC certificate is renewed in memory only").Len() != 1 {
				t.Errorf("log = %v, want it told", logs.All())
			}
		})
	}
}

func TestRenewRPCBesideAKeyWithOtherLineEnds(t *testing.T) {
	dir, b := filled(t)
	for _, name := range []string{"root-ca.key", "rpc.key"} {
		writeFile(t, bytes.ReplaceAll(readFile(t, dir, name), []byte("\n"), []byte("\r\n")), 0o600, dir, name)
	}
	before := snapshot(t, dir)
	if _, err := open(t, dir, nil).RenewRPC(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"rpc.crt"}, changed(t, dir, before)); diff != "" {
		t.Errorf("changed (-want +got):\n%s", diff)
	}
	checkWhole(t, dir, b)
}

func TestRenewRPCRefuses(t *testing.T) {
	dir, _ := filled(t)
	s := open(t, dir, nil)
	old := s.RPCCertificate()
	twice := keys.Extension(keys.ArcUsage, nil)
	if _, err := s.RenewRPC(t.Context(), twice); err == nil || !strings.Contains(err.Error(), "must not be given") {
		t.Errorf("RenewRPC with the usage again = %v, want a refusal", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	unlock, err := (durable.OS{}).Lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.RenewRPC(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("RenewRPC with an ended context in a locked directory = %v, want canceled", err)
	}
	unlock()
	if cert, err := s.RenewRPC(ended); err != nil || cert.Leaf == nil {
		t.Errorf("RenewRPC with an ended context in a free directory = %v, want it done", err)
	}
	old = s.RPCCertificate()

	// The directory was emptied and bootstrapped again.
	other, _ := filled(t)
	for _, name := range eightNames() {
		writeFile(t, readFile(t, other, name), theEight()[name], dir, name)
	}
	before := snapshot(t, dir)
	if _, err := s.RenewRPC(t.Context()); err == nil || !strings.Contains(err.Error(), "holds other keys than when it was opened") {
		t.Errorf("RenewRPC over another KMS's keys = %v, want a refusal", err)
	}
	if got := changed(t, dir, before); len(got) != 0 {
		t.Errorf("changed = %v, want nothing", got)
	}
	if !bytes.Equal(s.RPCCertificate().Certificate[0], old.Certificate[0]) {
		t.Error("a refused renewal has changed the certificate")
	}
}
