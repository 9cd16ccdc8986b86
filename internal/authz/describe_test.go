package authz_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
	"teekms/internal/authz"
	"teekms/internal/ratls"
)

// attested runs a software trust domain, lets extend go on with it, and returns
// what its appraised Evidence says, with the Evidence itself.
func attested(t *testing.T, m simtd.Measurements, extend func(*simtd.TD)) (*ratls.Attested, *simtd.TD) {
	t.Helper()
	td, err := simtd.Open(simtd.Config{Dir: t.TempDir(), Measurements: m})
	if err != nil {
		t.Fatal(err)
	}
	if extend != nil {
		extend(td)
	}
	if err := td.SetEndorsements(simtd.Endorsements{QE: simtd.Level{Status: attest.SWHardeningNeeded, Advisories: []string{"INTEL-SA-00615"}}}); err != nil {
		t.Fatal(err)
	}
	verifier, err := tdx.NewVerifier(tdx.Config{TrustAnchor: td.Root(), Collateral: td})
	if err != nil {
		t.Fatal(err)
	}
	appraiser, err := ratls.NewAppraiser(ratls.AppraiserConfig{Verifier: verifier})
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	ev, err := td.Attest(t.Context(), attest.RATLSReportData(spki))
	if err != nil {
		t.Fatal(err)
	}
	a, err := appraiser.Appraise(t.Context(), ev, spki)
	if err != nil {
		t.Fatal(err)
	}
	return a, td
}

func extend(t *testing.T, td *simtd.TD, name string, payload ...byte) {
	t.Helper()
	if err := td.Extend(name, payload); err != nil {
		t.Fatal(err)
	}
}

// sha256Of and extended are the second implementation: no code of the product.
func sha256Of(parts ...[]byte) (d [32]byte) { return sha256.Sum256(bytes.Join(parts, nil)) }

func extended(events ...simtd.RuntimeEvent) (mr [48]byte) {
	for _, e := range events {
		d := sha512.Sum384(slices.Concat([]byte("\x01\x00\x00\x08:"+e.Name+":"), e.Payload))
		mr = sha512.Sum384(slices.Concat(mr[:], d[:]))
	}
	return mr
}

// ppid finds the OCTET STRING of 16 bytes behind 1.2.840.113741.1.13.1.1.
func ppid(t *testing.T, pck *x509.Certificate) []byte {
	t.Helper()
	oid, err := hex.DecodeString("060a2a864886f84d010d01010410")
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := bytes.Cut(pck.Raw, oid)
	if !found {
		t.Fatal("the PCK has no PPID")
	}
	return after[:16]
}

func TestDescribeGivesTheValuesOfTheQuote(t *testing.T) {
	app, compose, inst, image := bytes.Repeat([]byte{0xa1}, 20), bytes.Repeat([]byte{0xa2}, 32), bytes.Repeat([]byte{0xa3}, 20), bytes.Repeat([]byte{0xa4}, 32)
	provider := []byte(`{"name":"kms","id":"3059"}`)
	atBoot := []simtd.RuntimeEvent{
		{Name: "system-preparing"},
		{Name: "app-id", Payload: app},
		{Name: "compose-hash", Payload: compose},
		{Name: "instance-id", Payload: inst},
		{Name: "boot-mr-done"},
	}
	all := append(slices.Clone(atBoot), simtd.RuntimeEvent{Name: "os-image-hash", Payload: image}, simtd.RuntimeEvent{Name: "key-provider", Payload: provider}, simtd.RuntimeEvent{Name: "system-ready"})
	a, td := attested(t, simtd.Measurements{OSImageHash: image, Runtime: all}, nil)
	q := a.Evidence.Quote
	reg := func(at int) []byte { return q[48+at : 48+at+48] }
	var zero [32]byte
	kp := sha256Of(provider)
	config := [][]byte{reg(184), reg(232), reg(280)}
	atEnd, boot := extended(all...), extended(atBoot...)
	if !bytes.Equal(atEnd[:], reg(472)) {
		t.Fatalf("the events replay to %x, the quote has %x", atEnd, reg(472))
	}
	common := authz.BootInfo{
		TEEVariant: "dstack-tdx", AppID: app, ComposeHash: compose, InstanceID: inst,
		DeviceID:    sha256Of(ppid(t, td.PCK())),
		MRTD:        attest.Measurement(reg(136)),
		RTMR:        [4]attest.Measurement{attest.Measurement(reg(328)), attest.Measurement(reg(376)), attest.Measurement(reg(424)), attest.Measurement(reg(472))},
		OSImageHash: image, VMConfig: td.VMConfig(), TCBStatus: "SWHardeningNeeded", AdvisoryIDs: []string{"INTEL-SA-00615"},
		EventLog: td.EventLog(),
	}
	tests := []struct {
		name     string
		bootTime bool
		provider []byte
		mrSystem [32]byte
		mrAggr   [32]byte
	}{
		{
			"now", false, provider,
			sha256Of(reg(136), reg(328), reg(376), reg(424), kp[:]),
			sha256Of(slices.Concat([][]byte{reg(136), reg(328), reg(376), reg(424), reg(472)}, config)...),
		},
		{
			"at boot", true, nil,
			sha256Of(reg(136), reg(328), reg(376), reg(424), zero[:]),
			sha256Of(slices.Concat([][]byte{reg(136), reg(328), reg(376), reg(424), boot[:]}, config)...),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := common
			want.KeyProviderInfo, want.MRSystem, want.MRAggregated = tt.provider, tt.mrSystem, tt.mrAggr
			got, err := authz.Describe(a, authz.DescribeOptions{BootTime: tt.bootTime})
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("Describe() = %v, (-want +got)\n%s", err, diff)
			}
		})
	}
}

func TestAggregatesWithoutConfiguration(t *testing.T) {
	// A quote whose three configuration registers are zero leaves them out.
	c := &attest.Claims{TEE: "tdx", MRTD: attest.Measurement{1}, RTMR: [4]attest.Measurement{{2}, {3}, {4}, {5}}, PPID: []byte("platform")}
	log := eventlog.Log{{IMR: 3, Type: eventlog.RuntimeEventType, Name: "app-id", Payload: make([]byte, 20)}}
	got, err := authz.Describe(&ratls.Attested{Claims: c, Log: log}, authz.DescribeOptions{})
	want := sha256Of(c.MRTD[:], c.RTMR[0][:], c.RTMR[1][:], c.RTMR[2][:], c.RTMR[3][:])
	if err != nil || got.MRAggregated != want {
		t.Errorf("Describe() = %x, %v, want MRAggregated %x", got.MRAggregated, err, want)
	}
	if got.ComposeHash != nil || got.InstanceID != nil || got.OSImageHash != nil || got.VMConfig != "{}" {
		t.Errorf("Describe() = %+v, want nothing that was not measured", got)
	}
}

// The application extends RTMR3 after system-ready as it likes.
func TestAnApplicationCannotSayWhatItIs(t *testing.T) {
	a, td := attested(t, simtd.Measurements{}, func(td *simtd.TD) {
		extend(t, td, "system-ready")
		extend(t, td, "app-id", make([]byte, 20)...)
		extend(t, td, "compose-hash", make([]byte, 32)...)
		extend(t, td, "instance-id", make([]byte, 20)...)
		extend(t, td, "key-provider", []byte(`{"name":"kms"}`)...)
		extend(t, td, "boot-mr-done")
	})
	m := td.Measurements()
	got, err := authz.Describe(a, authz.DescribeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.AppID, m.AppID) || !bytes.Equal(got.ComposeHash, m.ComposeHash) || !bytes.Equal(got.InstanceID, m.InstanceID) || string(got.KeyProviderInfo) != m.KeyProvider {
		t.Errorf("Describe() = %+v, want the identity of the boot, %+v", got, m)
	}
}

func TestTheEndOfBootIsBeforeTheApplication(t *testing.T) {
	app := simtd.RuntimeEvent{Name: "app-id", Payload: make([]byte, 20)}
	done, ready := simtd.RuntimeEvent{Name: "boot-mr-done"}, simtd.RuntimeEvent{Name: "system-ready"}
	tests := []struct {
		name   string
		events []simtd.RuntimeEvent
		until  int
	}{
		{"first of two", []simtd.RuntimeEvent{app, done, {Name: "x"}, done}, 2},
		{"none", []simtd.RuntimeEvent{app, {Name: "x"}}, 2},
		{"only the application's", []simtd.RuntimeEvent{app, ready, done, {Name: "x"}}, 4},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, _ := attested(t, simtd.Measurements{Runtime: tt.events}, nil)
			got, err := authz.Describe(a, authz.DescribeOptions{BootTime: true})
			want := a.Claims.MRAggregated(extended(tt.events[:tt.until]...))
			if err != nil || got.MRAggregated != want {
				t.Errorf("Describe() = %x, %v, want RTMR3 of the first %d events, %x", got.MRAggregated, err, tt.until, want)
			}
		})
	}
}

func TestDescribeChoosesTheDescriptionOfTheMachine(t *testing.T) {
	one, two := strings.Repeat("01", 32), strings.Repeat("02", 32)
	hash := func(h string) string { return `{"os_image_hash":"` + h + `"}` }
	tests := []struct {
		name, requested, embedded string
		wantConfig, wantHash      string
	}{
		{"of the request", hash(one), hash(two), hash(one), one},
		{"of the Evidence", "", hash(two), hash(two), two},
		{"none", "", "", "{}", ""},
		{"request without a hash", "{}", hash(two), "{}", ""},
		{"upper case", hash(strings.ToUpper(strings.Repeat("ab", 32))), "", hash(strings.ToUpper(strings.Repeat("ab", 32))), strings.Repeat("ab", 32)},
		{"empty hash", hash(""), "", hash(""), ""},
		{"system configuration in the Evidence", "", `{"host":"h","vm_config":"{\"os_image_hash\":\"` + two + `\"}"}`, hash(two), two},
		{"system configuration in the request is a machine without a hash", `{"vm_config":"{}"}`, hash(two), `{"vm_config":"{}"}`, ""},
		{"members of later versions", `{"tdx_measurement":{"checksum_file":"e30="},"os_image_hash":"` + one + `","num_nics":2}`, "", `{"tdx_measurement":{"checksum_file":"e30="},"os_image_hash":"` + one + `","num_nics":2}`, one},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := minimal()
			a.VMConfig = tt.embedded
			got, err := authz.Describe(a, authz.DescribeOptions{VMConfig: tt.requested})
			if err != nil || got.VMConfig != tt.wantConfig || hex.EncodeToString(got.OSImageHash) != tt.wantHash {
				t.Errorf("Describe() = %q, %x, %v, want %q, %s", got.VMConfig, got.OSImageHash, err, tt.wantConfig, tt.wantHash)
			}
		})
	}
}

// minimal is the least that can be described.
func minimal() *ratls.Attested {
	return &ratls.Attested{
		Claims: &attest.Claims{TEE: "tdx"},
		Log:    eventlog.Log{{IMR: 3, Type: eventlog.RuntimeEventType, Name: "app-id", Payload: make([]byte, 20)}},
	}
}

func TestDescribeRefuses(t *testing.T) {
	appID := func(n int) func(*ratls.Attested) {
		return func(a *ratls.Attested) { a.Log[0].Payload = make([]byte, n) }
	}
	tests := []struct {
		name     string
		edit     func(*ratls.Attested)
		vmConfig string
		sentinel error
		want     string
	}{
		{"no claims", func(a *ratls.Attested) { a.Claims = nil }, "", nil, "no attestation to describe"},
		{"another TEE", func(a *ratls.Attested) { a.Claims.TEE = "sev-snp" }, "", nil, `no boot information for a TEE of kind "sev-snp"`},
		{"no app id", func(a *ratls.Attested) { a.Log = nil }, "", authz.ErrAppID, "app_id must be 20 bytes"},
		{"app id of 0 bytes", appID(0), "", authz.ErrAppID, "app_id must be 20 bytes"},
		{"app id of 19 bytes", appID(19), "", authz.ErrAppID, "app_id must be 20 bytes"},
		{"app id of 21 bytes", appID(21), "", authz.ErrAppID, "app_id must be 20 bytes"},
		{"app id of a boot event", func(a *ratls.Attested) { a.Log[0].Type = 4 }, "", authz.ErrAppID, "app_id must be 20 bytes"},
		{"app id after system-ready", func(a *ratls.Attested) {
			a.Log = append(eventlog.Log{{IMR: 3, Type: eventlog.RuntimeEventType, Name: "system-ready"}}, a.Log...)
		}, "", authz.ErrAppID, "app_id must be 20 bytes"},
		{"second app id", func(a *ratls.Attested) { a.Log = append(a.Log, a.Log[0]) }, "", nil, `reading the event log: event 1: second event "app-id"`},
		{"machine that is no JSON", nil, "x", authz.ErrVMConfig, "failed to decode VM config: not JSON"},
		{"machine that is a list", nil, "[]", authz.ErrVMConfig, "failed to decode VM config: want a JSON object"},
		{"blank", nil, " ", authz.ErrVMConfig, "failed to decode VM config: not JSON"},
		{"hash with 0x", nil, `{"os_image_hash":"0x01"}`, authz.ErrVMConfig, "failed to decode VM config: os_image_hash: want hex"},
		{"hash of odd length", nil, `{"os_image_hash":"012"}`, authz.ErrVMConfig, "failed to decode VM config: os_image_hash: want hex"},
		{"hash with a space", nil, `{"os_image_hash":" 01"}`, authz.ErrVMConfig, "failed to decode VM config: os_image_hash: want hex"},
		{"hash as a list", nil, `{"os_image_hash":[1]}`, authz.ErrVMConfig, "failed to decode VM config: os_image_hash: want a string"},
		{"hash as null", nil, `{"os_image_hash":null}`, authz.ErrVMConfig, "failed to decode VM config: os_image_hash: want a string"},
		{"hash given twice", nil, `{"os_image_hash":"01","os_image_hash":"02"}`, authz.ErrVMConfig, "failed to decode VM config: os_image_hash: given twice"},
		{"hash of 65 bytes", nil, `{"os_image_hash":"` + strings.Repeat("0", 130) + `"}`, authz.ErrVMConfig, "failed to decode VM config: os_image_hash: 130 characters, want at most 128"},
		{"too large", nil, `{"x":"` + strings.Repeat("a", 256<<10) + `"}`, authz.ErrVMConfig, "failed to decode VM config: 262152 bytes, want at most 262144"},
		{"too deep", nil, strings.Repeat(`{"x":`, 40) + "1" + strings.Repeat("}", 40), authz.ErrVMConfig, "failed to decode VM config: nested deeper than 32"},
		{"bad machine in the Evidence", func(a *ratls.Attested) { a.VMConfig = "x" }, "", authz.ErrVMConfig, "failed to decode VM config: not JSON"},
		{"bad machine inside a system configuration", func(a *ratls.Attested) { a.VMConfig = `{"vm_config":""}` }, "", authz.ErrVMConfig, "failed to decode VM config: not JSON"},
		{"system configuration with an object", func(a *ratls.Attested) { a.VMConfig = `{"vm_config":{}}` }, "", authz.ErrVMConfig, "failed to decode VM config: vm_config: want a string"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := minimal()
			if tt.edit != nil {
				tt.edit(a)
			}
			got, err := authz.Describe(a, authz.DescribeOptions{VMConfig: tt.vmConfig})
			if err == nil || err.Error() != tt.want || (tt.sentinel != nil && !errors.Is(err, tt.sentinel)) {
				t.Errorf("Describe() = %+v, %v, want %s", got, err, tt.want)
			}
		})
	}
	if _, err := authz.Describe(nil, authz.DescribeOptions{}); err == nil {
		t.Errorf("Describe(nil) = nil, want an error")
	}
}

func BenchmarkDescribe(b *testing.B) {
	a := minimal()
	a.VMConfig = `{"spec_version":1,"os_image_hash":"` + strings.Repeat("ab", 32) + `","cpu_count":2,"memory_size":2147483648}`
	for range 30 {
		a.Log = append(a.Log, eventlog.Event{IMR: 3, Type: eventlog.RuntimeEventType, Name: "storage-fs", Payload: make([]byte, 32)})
	}
	for _, bootTime := range []bool{false, true} {
		b.Run(fmt.Sprintf("bootTime=%v", bootTime), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := authz.Describe(a, authz.DescribeOptions{BootTime: bootTime}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func FuzzVMConfig(f *testing.F) {
	f.Add(`{"spec_version":1,"os_image_hash":"01ff","cpu_count":2,"memory_size":2147483648}`, "")
	f.Add("", `{"vm_config":"{\"os_image_hash\":\"01\"}"}`)
	f.Add("{}", `{"os_image_hash":"01"}`)
	f.Add(`{"os_image_hash":"0x01"}`, "x")
	f.Fuzz(func(t *testing.T, requested, embedded string) {
		a := minimal()
		a.VMConfig = embedded
		b, err := authz.Describe(a, authz.DescribeOptions{VMConfig: requested})
		if err != nil {
			if !errors.Is(err, authz.ErrVMConfig) {
				t.Errorf("Describe(%q, %q) = %v, want %v", requested, embedded, err, authz.ErrVMConfig)
			}
			return
		}
		// What was chosen says again what was understood of it.
		again, err := authz.OSImageHash(b.VMConfig)
		if err != nil || !bytes.Equal(again, b.OSImageHash) || len(again) > authz.MaxOSImageHashSize {
			t.Errorf("OSImageHash(%q) = %x, %v, want %x", b.VMConfig, again, err, b.OSImageHash)
		}
		if len(b.OSImageHash) > 0 && !strings.Contains(strings.ToLower(b.VMConfig), hex.EncodeToString(b.OSImageHash)[:2]) && !strings.Contains(b.VMConfig, `\u`) {
			t.Errorf("Describe(%q, %q) has a hash %x that nobody wrote", requested, embedded, b.OSImageHash)
		}
	})
}
