package tdx_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
)

// sourceFunc is a CollateralSource for the tests.
type sourceFunc func(context.Context, tdx.FMSPC, tdx.CA) (*tdx.Collateral, error)

func (f sourceFunc) Collateral(ctx context.Context, fmspc tdx.FMSPC, ca tdx.CA) (*tdx.Collateral, error) {
	return f(ctx, fmspc, ca)
}

// edited gives td's collateral with one thing changed.
func edited(td *simtd.TD, edit func(*tdx.Collateral)) sourceFunc {
	return func(ctx context.Context, fmspc tdx.FMSPC, ca tdx.CA) (*tdx.Collateral, error) {
		c, err := td.Collateral(ctx, fmspc, ca)
		if err != nil {
			return nil, err
		}
		changed := *c
		edit(&changed)
		return &changed, nil
	}
}

func TestCollateralRefusals(t *testing.T) {
	td, other := openTD(t, simtdConfig()), openTD(t, simtdConfig())
	foreign, err := other.Collateral(t.Context(), tdx.FMSPC(other.Measurements().FMSPC), tdx.PlatformCA)
	if err != nil {
		t.Fatal(err)
	}
	cut := func(b []byte) []byte { return b[:len(b)-1] }
	flip := func(b []byte) []byte {
		b = bytes.Clone(b)
		b[len(b)-1] ^= 1
		return b
	}
	space := func(b []byte) []byte { return bytes.Replace(b, []byte(`"id":`), []byte(`"id": `), 1) }
	tests := []struct {
		name   string
		edit   func(*tdx.Collateral)
		reason string
	}{
		{"TCB info of another PKI", func(c *tdx.Collateral) { c.TCBInfo = foreign.TCBInfo }, "TCB info: signature does not verify"},
		{"TCB info and chain of another PKI", func(c *tdx.Collateral) { c.TCBInfo, c.TCBInfoChain = foreign.TCBInfo, foreign.TCBInfoChain }, "TCB info signer: "},
		{"QE identity of another PKI", func(c *tdx.Collateral) { c.QEIdentity = foreign.QEIdentity }, "QE identity: signature does not verify"},
		{"QE identity and chain of another PKI", func(c *tdx.Collateral) {
			c.QEIdentity, c.QEIdentityChain = foreign.QEIdentity, foreign.QEIdentityChain
		}, "QE identity signer: "},
		{"PCK CRL of another PKI", func(c *tdx.Collateral) { c.PCKCRL = foreign.PCKCRL }, "PCK CRL: "},
		{"PCK CRL and chain of another PKI", func(c *tdx.Collateral) { c.PCKCRL, c.PCKCRLChain = foreign.PCKCRL, foreign.PCKCRLChain }, "chain of the PCK CRL: "},
		{"root CRL of another PKI", func(c *tdx.Collateral) { c.RootCRL = foreign.RootCRL }, "root CRL: "},
		{"root CRL as PCK CRL", func(c *tdx.Collateral) { c.PCKCRL = c.RootCRL }, "PCK CRL: issued by"},
		{"PCK CRL as root CRL", func(c *tdx.Collateral) { c.RootCRL = c.PCKCRL }, "root CRL: issued by"},
		{"one space more in TCB info", func(c *tdx.Collateral) { c.TCBInfo = space(c.TCBInfo) }, "TCB info: signature does not verify"},
		{"one space more in QE identity", func(c *tdx.Collateral) { c.QEIdentity = space(c.QEIdentity) }, "QE identity: signature does not verify"},
		{"last byte of the root CRL", func(c *tdx.Collateral) { c.RootCRL = flip(c.RootCRL) }, "root CRL: "},
		{"last byte of the PCK CRL", func(c *tdx.Collateral) { c.PCKCRL = flip(c.PCKCRL) }, "PCK CRL: "},
		{"cut TCB info", func(c *tdx.Collateral) { c.TCBInfo = cut(c.TCBInfo) }, "TCB info: "},
		{"cut QE identity", func(c *tdx.Collateral) { c.QEIdentity = cut(c.QEIdentity) }, "QE identity: "},
		{"cut PCK CRL", func(c *tdx.Collateral) { c.PCKCRL = cut(c.PCKCRL) }, "PCK CRL: "},
		{"PCK authority as TCB signer", func(c *tdx.Collateral) { c.TCBInfoChain = c.PCKCRLChain }, `signed by "Intel SGX PCK Platform CA"`},
		{"TCB signer as PCK authority", func(c *tdx.Collateral) { c.PCKCRLChain = c.TCBInfoChain }, "PCK CRL is issued by"},
		{"short signature", func(c *tdx.Collateral) {
			c.TCBInfo = bytes.Replace(c.TCBInfo, []byte(`"signature":"`), []byte(`"signature":"","x":"`), 1)
		}, "signature does not verify"},
		{"nothing at all", func(c *tdx.Collateral) { *c = tdx.Collateral{} }, "root CRL: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := newVerifier(t, tdx.Config{TrustAnchor: td.Root(), Collateral: edited(td, tt.edit), Now: (&clock{simTime}).Now})
			_, err := v.Verify(t.Context(), attestBy(t, td))
			wantRefusal(t, err, attest.LinkCollateral, tt.reason)
			if v.Enclaves() != 0 {
				t.Error("the enclave is remembered although the whole did not hold")
			}
		})
	}
}

// TestSignedCollateralRefusals has TCB info and QE identity that are properly
// signed and say what they must not.
func TestSignedCollateralRefusals(t *testing.T) {
	td := openTD(t, simtdConfig())
	replace := func(old, with string) func([]byte) []byte {
		return func(b []byte) []byte {
			if !bytes.Contains(b, []byte(old)) {
				t.Errorf("no %q in %s", old, b)
			}
			return bytes.ReplaceAll(b, []byte(old), []byte(with))
		}
	}
	fmspc := strings.ToUpper(hex.EncodeToString(fmspcOf(td)))
	tests := []struct {
		name         string
		tcb, qe      func([]byte) []byte
		link, reason string
	}{
		{"TCB info of another platform", replace(fmspc, "0102030405FF"), nil, attest.LinkCollateral, "is for FMSPC 0102030405ff"},
		{"TCB info of another PCE", replace(`"pceId":"0000"`, `"pceId":"0001"`), nil, attest.LinkTCB, "is for PCE 0001"},
		{"SGX TCB info", replace(`"id":"TDX"`, `"id":"SGX"`), nil, attest.LinkCollateral, `id "SGX"`},
		{"TCB info version 2", replace(`"version":3`, `"version":2`), nil, attest.LinkCollateral, "version 2"},
		{"another TCB type", replace(`"tcbType":0`, `"tcbType":1`), nil, attest.LinkCollateral, "TCB type 0"},
		{"no TCB type", replace(`"tcbType":0,`, ``), nil, attest.LinkCollateral, "TCB type 0"},
		{"unknown status", replace(`"UpToDate"`, `"Splendid"`), nil, attest.LinkCollateral, `unknown TCB status "Splendid"`},
		{"no PCESVN", replace(`"pcesvn"`, `"pcesvm"`), nil, attest.LinkCollateral, "pcesvn missing"},
		{"SVN of 256", replace(`"pcesvn":13,"tdxtcbcomponents":[{"svn":`, `"pcesvn":13,"tdxtcbcomponents":[{"svn":25`), nil, attest.LinkCollateral, "cannot unmarshal number 25"},
		{"15 components", replace(`"sgxtcbcomponents":[{"svn":5},`, `"sgxtcbcomponents":[`), nil, attest.LinkCollateral, "15 TCB components"},
		{"component without SVN", replace(`"sgxtcbcomponents":[{"svn":5}`, `"sgxtcbcomponents":[{}`), nil, attest.LinkCollateral, "has no svn"},
		{"SGX QE identity", nil, replace(`"id":"TD_QE"`, `"id":"QE"`), attest.LinkCollateral, `id "QE"`},
		{"QE identity version 3", nil, replace(`"version":2`, `"version":3`), attest.LinkCollateral, "version 3"},
		{"QE identity without product", nil, replace(`"isvprodid"`, `"x"`), attest.LinkCollateral, "isvprodid"},
		{"QE level without SVN", nil, replace(`"isvsvn"`, `"x"`), attest.LinkCollateral, "isvsvn missing"},
		{"QE mask of the wrong size", nil, replace(`"miscselectMask":"FFFFFFFF"`, `"miscselectMask":"FFFFFF"`), attest.LinkCollateral, "miscselectMask is not 4 bytes"},
		{"QE attribute expected", nil, replace(`"attributes":"11`, `"attributes":"31`), attest.LinkTCB, "ATTRIBUTES of the quoting enclave"},
		{"QE identity without dates", nil, replace(`"issueDate"`, `"x"`), attest.LinkCollateral, "issue date or next update missing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			endorse(t, td, simtd.Endorsements{EditTCBInfo: tt.tcb, EditQEIdentity: tt.qe})
			_, err := verifierOf(t, td).Verify(t.Context(), attestBy(t, td))
			wantRefusal(t, err, tt.link, tt.reason)
		})
	}
}

func fmspcOf(td *simtd.TD) []byte {
	f := td.Measurements().FMSPC
	return f[:]
}

func TestSourceFails(t *testing.T) {
	td := openTD(t, simtdConfig())
	asked := 0
	source := sourceFunc(func(context.Context, tdx.FMSPC, tdx.CA) (*tdx.Collateral, error) {
		asked++
		return nil, errors.New("network is down")
	})
	v := newVerifier(t, tdx.Config{TrustAnchor: td.Root(), Collateral: source, Now: (&clock{simTime}).Now})
	_, err := v.Verify(t.Context(), attestBy(t, td))
	wantRefusal(t, err, attest.LinkCollateral, "network is down")
	if !errors.Is(err, attest.ErrNoCollateral) {
		t.Errorf("errors.Is(%v, ErrNoCollateral) = false", err)
	}
	// Evidence that does not hold by itself causes no fetch.
	bad := attestBy(t, td)
	bad.Quote[300] ^= 1
	if _, err := v.Verify(t.Context(), bad); err == nil || asked != 1 {
		t.Errorf("Verify() of a forged quote = %v after %d fetches, want 1 fetch", err, asked)
	}
}

func TestDirSource(t *testing.T) {
	td := openTD(t, simtdConfig())
	want, err := td.Collateral(t.Context(), tdx.FMSPC(fmspcOf(td)), tdx.PlatformCA)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := want.WriteDir(dir); err != nil {
		t.Fatal(err)
	}
	source, err := tdx.NewDirSource(dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := source.Collateral(t.Context(), tdx.FMSPC{}, tdx.PlatformCA)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("Collateral() = %v (-written +read):\n%s", err, diff)
	}
	if _, err := tdx.NewDirSource(dir + "/none"); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("NewDirSource(none) = %v, want an error that names it", err)
	}
	empty, err := tdx.NewDirSource(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := empty.Collateral(t.Context(), tdx.FMSPC{}, tdx.PlatformCA); err == nil || !strings.Contains(err.Error(), "reading collateral") {
		t.Errorf("Collateral() of an empty directory = %v, want an error", err)
	}
}
