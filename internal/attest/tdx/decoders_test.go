package tdx_test

import (
	"bytes"
	"encoding/asn1"
	"strings"
	"testing"

	guesttesting "github.com/google/go-tdx-guest/testing"

	"teekms/internal/attest/tdx"
)

// sgxOID is 1.2.840.113741.1.13.1 and arcs below it.
func sgxOID(below ...int) asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}, below...)
}

type entry struct {
	ID    asn1.ObjectIdentifier
	Value any
}

// tcbEntries are the 18 members of a TCB.
func tcbEntries() []entry {
	var tcb []entry
	for i := 1; i <= 16; i++ {
		tcb = append(tcb, entry{sgxOID(2, i), i})
	}
	return append(tcb, entry{sgxOID(2, 17), 13}, entry{sgxOID(2, 18), make([]byte, 16)})
}

func extEntries() []entry {
	return []entry{
		{sgxOID(1), bytes.Repeat([]byte{1}, 16)},
		{sgxOID(2), tcbEntries()},
		{sgxOID(3), []byte{0, 2}},
		{sgxOID(4), []byte{1, 2, 3, 4, 5, 6}},
		{sgxOID(5), asn1.Enumerated(1)},
	}
}

func derOf(tb testing.TB, v any) []byte {
	tb.Helper()
	der, err := asn1.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

func TestParsePCKExtension(t *testing.T) {
	got, err := tdx.ParsePCKExtension(derOf(t, extEntries()))
	if err != nil {
		t.Fatalf("ParsePCKExtension() = %v", err)
	}
	if got.PPID[15] != 1 || got.Components != [16]uint8{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16} ||
		got.PCESVN != 13 || got.PCEID != [2]byte{0, 2} || got.FMSPC != (tdx.FMSPC{1, 2, 3, 4, 5, 6}) {
		t.Errorf("ParsePCKExtension() = %+v", got)
	}
}

func TestParsePCKExtensionRefuses(t *testing.T) {
	set := func(i int, e entry) []entry {
		all := extEntries()
		all[i] = e
		return all
	}
	tcb := func(i int, e entry) []entry {
		members := tcbEntries()
		members[i] = e
		return set(1, entry{sgxOID(2), members})
	}
	tests := []struct {
		name   string
		der    []byte
		reason string
	}{
		{"nothing", nil, "not one SEQUENCE"},
		{"trailing bytes", append(derOf(t, extEntries()), 0), "not one SEQUENCE"},
		{"a pair that is none", derOf(t, []int{1}), "not a SEQUENCE of an OID"},
		{"no PPID", derOf(t, extEntries()[1:]), "1.2.840.113741.1.13.1.1 is missing"},
		{"no SGX type", derOf(t, extEntries()[:4]), "1.2.840.113741.1.13.1.5 is missing"},
		{"two FMSPCs", derOf(t, append(extEntries(), extEntries()[3])), "is there twice"},
		{"short PPID", derOf(t, set(0, entry{sgxOID(1), make([]byte, 15)})), "not an OCTET STRING of 16"},
		{"PPID as an integer", derOf(t, set(0, entry{sgxOID(1), 7})), "not an OCTET STRING of 16"},
		{"long FMSPC", derOf(t, set(3, entry{sgxOID(4), make([]byte, 7)})), "not an OCTET STRING of 6"},
		{"SGX type as an integer", derOf(t, set(4, entry{sgxOID(5), 1})), "not one ENUMERATED"},
		{"17 TCB members", derOf(t, set(1, entry{sgxOID(2), tcbEntries()[:17]})), "17 members, want 18"},
		{"19 TCB members", derOf(t, set(1, entry{sgxOID(2), append(tcbEntries(), entry{sgxOID(2, 19), 1})})), "unexpected member"},
		{"a TCB member twice", derOf(t, tcb(0, entry{sgxOID(2, 2), 1})), "unexpected member"},
		{"a TCB member of another arc", derOf(t, tcb(0, entry{sgxOID(3, 1), 1})), "unexpected member"},
		{"component 256", derOf(t, tcb(0, entry{sgxOID(2, 1), 256})), "not an INTEGER from 0 to 255"},
		{"component -1", derOf(t, tcb(0, entry{sgxOID(2, 1), -1})), "not an INTEGER from 0 to 255"},
		{"PCESVN 65536", derOf(t, tcb(16, entry{sgxOID(2, 17), 65536})), "not an INTEGER from 0 to 65535"},
		{"short CPUSVN", derOf(t, tcb(17, entry{sgxOID(2, 18), make([]byte, 8)})), "not an OCTET STRING of 16"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := tdx.ParsePCKExtension(tt.der); err == nil || !strings.Contains(err.Error(), tt.reason) {
				t.Errorf("ParsePCKExtension() = %v, want %q", err, tt.reason)
			}
		})
	}
}

func FuzzParsePCKExtension(f *testing.F) {
	f.Add(derOf(f, extEntries()))
	td := openTD(f, simtdConfig())
	for _, e := range td.PCK().Extensions {
		f.Add(e.Value)
	}
	f.Fuzz(func(_ *testing.T, der []byte) {
		_, _ = tdx.ParsePCKExtension(der)
	})
}

// object takes a member out of a recorded answer.
func object(tb testing.TB, body []byte, name string) []byte {
	tb.Helper()
	start := bytes.Index(body, []byte(`{"`+name+`":`))
	end := bytes.LastIndex(body, []byte(`,"signature"`))
	if start != 0 || end < 0 {
		tb.Fatalf("no %s in %.40q", name, body)
	}
	return body[len(name)+4 : end]
}

func FuzzParseTCBInfo(f *testing.F) {
	td := openTD(f, simtdConfig())
	c, err := td.Collateral(f.Context(), tdx.FMSPC(fmspcOf(td)), tdx.PlatformCA)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(object(f, c.TCBInfo, "tcbInfo"))
	f.Add(object(f, recorded(f, "sample_tcbinfo_response_v5"), "tcbInfo"))
	f.Add(object(f, recorded(f, "sample_tcbInfo_response"), "tcbInfo"))
	f.Fuzz(func(t *testing.T, in []byte) {
		if info, err := tdx.ParseTCBInfo(in); err == nil && len(info.Levels) == 0 {
			t.Errorf("ParseTCBInfo(%q) has no level", in)
		}
	})
}

func FuzzParseQEIdentity(f *testing.F) {
	td := openTD(f, simtdConfig())
	c, err := td.Collateral(f.Context(), tdx.FMSPC(fmspcOf(td)), tdx.PlatformCA)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(object(f, c.QEIdentity, "enclaveIdentity"))
	f.Add(object(f, recorded(f, "sample_qeIdentity_response"), "enclaveIdentity"))
	f.Fuzz(func(t *testing.T, in []byte) {
		if id, err := tdx.ParseQEIdentity(in); err == nil && len(id.Levels) == 0 {
			t.Errorf("ParseQEIdentity(%q) has no level", in)
		}
	})
}

// FuzzCollateral changes one part of good collateral at a time: nothing but
// the part itself may verify in its place.
func FuzzCollateral(f *testing.F) {
	td := openTD(f, simtdConfig())
	fmspc := tdx.FMSPC(fmspcOf(td))
	good, err := td.Collateral(f.Context(), fmspc, tdx.PlatformCA)
	if err != nil {
		f.Fatal(err)
	}
	parts := func(c *tdx.Collateral) []*[]byte {
		return []*[]byte{&c.TCBInfo, &c.QEIdentity, &c.PCKCRL, &c.RootCRL, &c.TCBInfoChain, &c.QEIdentityChain, &c.PCKCRLChain}
	}
	for i, part := range parts(good) {
		f.Add(uint8(i), *part)
	}
	f.Add(uint8(0), recorded(f, "sample_tcbInfo_response"))
	f.Add(uint8(1), recorded(f, "sample_qeIdentity_response"))
	f.Add(uint8(2), recorded(f, "pckcrl"))
	f.Add(uint8(3), recorded(f, "rootcrl.der"))
	for _, values := range guesttesting.TcbInfoHeader {
		f.Add(uint8(4), []byte(values[0]))
	}
	f.Fuzz(func(t *testing.T, which uint8, in []byte) {
		c := *good
		i := int(which) % len(parts(&c))
		truth := *parts(&c)[i]
		*parts(&c)[i] = in
		err := tdx.VerifyCollateral(&c, td.Root(), fmspc, tdx.PlatformCA, simTime)
		// The unsigned frames around what is signed may be spelled in many ways.
		if err == nil && (i == 2 || i == 3) && !bytes.Equal(in, truth) {
			t.Errorf("verify accepts another part %d: %x", i, in)
		}
	})
}
