package boot_test

import (
	"crypto/sha512"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/osimage/boot"
	"teekms/internal/osimage/osimagetest"
)

func digest(t *testing.T, text string) attest.Measurement {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != attest.MeasurementSize {
		t.Fatalf("%q is no digest", text)
	}
	return attest.Measurement(b)
}

// witness is that of every OVMF that dstack images have had; Debian's has it too.
const witness = "80100904000609020b021010"

func layout(t *testing.T) *boot.Layout {
	t.Helper()
	b, err := hex.DecodeString(witness)
	if err != nil {
		t.Fatal(err)
	}
	l, err := boot.ParseWitness(b)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestRegistersOfARealGuest computes the registers of a quote from a TDX machine
// with 64 GiB of memory, a GPU and a dstack image: RTMR0 from its memory size
// and the three digests of ACPI tables, the others from what is their own.
func TestRegistersOfARealGuest(t *testing.T) {
	hob, err := layout(t).HandOffBlock(64 << 30)
	if err != nil {
		t.Fatal(err)
	}
	acpi := boot.ACPI{
		Loader: digest(t, "2065dd48d647e4377db277ba203526901a17845e93e0df4c2dfc3ce136e0910324ead1e1c86b8d90c2acdf9c85ffac53"),
		RSDP:   digest(t, "772b0169c66b52e4453fff9e3c6257635ea950ebcc8edd7ef2e2f8241cf6a155f39df01a7c7a194b6bc0abe5de11861d"),
		Tables: digest(t, "abfb2256644b5786eefdcb92303d2008c36cb9500d98997e215ef5080745d4bf2e5b3629090918e193e7f05b173d48c5"),
	}
	kernel := digest(t, "0761fbfa317a42d8edbe9e404178d102adc059cface98c5e07d1d535371c145c3497fd2a19b8398568b8c8a6f95e0a86")
	cmdline := digest(t, "4027cb4ec64dbc24b6d98d9470daeefc749bbb6a9b011762d215f6ed3eb833d58fd72d9ad850958f72878182e6f61924")
	initrd := digest(t, "63e06e29cf98f2fce71abd3a9629dff48457b47c010b64e11f7a2b42dd99bfa14ee35660b3f5d3fc376261d6ba9a6d6b")
	tests := []struct {
		register string
		got      attest.Measurement
		want     string
	}{
		{"RTMR0", boot.RTMR0(hob, boot.CFV(), acpi), "2e3843265f8ecdd4e2282694747f6f2f111605c33f2a8882f5734ee6f3a6ce63d8f34aeef06093dcda76fa5f9d33d8d6"},
		{"RTMR1", boot.RTMR1(kernel), "a1b79d76021970f57c45c4a7c395f780bab37011a4df27fe44e8559bd1abb4d6e52f12f866d1d08405448eb797a5970f"},
		{"RTMR2", boot.RTMR2(cmdline, initrd), "1e31b59d605df7ee8160cf7966be9bafa6d0e1905de7e09695a24cd9748e71a603a51fae1297619fa0c30517addbcd07"},
	}
	for _, tt := range tests {
		if want := digest(t, tt.want); tt.got != want {
			t.Errorf("%s = %x, want %x", tt.register, tt.got, want)
		}
	}
}

func TestCFVIsTheEmptyVolume(t *testing.T) {
	if got, want := boot.CFV(), sha512.Sum384(osimagetest.Variables()); got != want {
		t.Errorf("CFV() = %x, want SHA-384 of the empty volume %x", got, want)
	}
}

func TestCommandLine(t *testing.T) {
	// "a\u00e9\U0001f600 initrd=initrd" and a zero, in UTF-16 as iconv writes it.
	want := sha512.Sum384([]byte("a\x00\xe9\x00\x3d\xd8\x00\xde \x00i\x00n\x00i\x00t\x00r\x00d\x00=\x00i\x00n\x00i\x00t\x00r\x00d\x00\x00\x00"))
	if got := boot.CommandLine("a\u00e9\U0001f600"); got != want {
		t.Errorf("CommandLine() = %x, want %x", got, want)
	}
}

func TestHandOffBlock(t *testing.T) {
	tests := []struct {
		name   string
		memory uint64
		want   string
	}{
		// The last is of the quote above, the others of another implementation.
		{"one GiB is one range", 1 << 30, "1055c9b9a1fc534e688560e2304e18c8597b7261818cf61fb163d40c130547309b750575947a4dcaedbdce4b8d0535f2"},
		{"two GiB are one range", 2 << 30, "0b8772e5b0b41b83e6044a68397e02f49fb47066b4fbe4917ea2c45c64f323fdacbb37948f821ebaf8bc9c938ba8a749"},
		{"three GiB are split", 3 << 30, "798f84285da30f6c295fbb73e3c093cf13164b6ad9d547a123b8d4d305f87a027caaba88e4cfd684ed7b424f37811a2e"},
		{"sixteen GiB are split", 16 << 30, "cd2312a0d87ef3c4a928df87088969a80b33d7bf3fc584bdde637b09ed808a8d821a56b78a13a6eb506db7578444abbe"},
		{"sixty-four GiB as measured", 64 << 30, "8ae1e425351df7992c444586eff99d35af3b779aa2b0e981cb4b73bc5b279f2ade19b6a62a203fc3c3bbdaae80af596d"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := layout(t).HandOffBlock(tt.memory)
			if want := digest(t, tt.want); err != nil || got != want {
				t.Errorf("HandOffBlock(%d) = %x, %v, want %x", tt.memory, got, err, want)
			}
		})
	}
	for _, memory := range []uint64{0, 4096, 0x820000, 1<<30 + 1, 1<<46 + 4096, 1<<64 - 4096} {
		if _, err := layout(t).HandOffBlock(memory); err == nil || !strings.Contains(err.Error(), "memory of") {
			t.Errorf("HandOffBlock(%d) = %v, want an error that tells the memory", memory, err)
		}
	}
}

func TestParseWitnessRefuses(t *testing.T) {
	tests := []struct {
		name, witness, want string
	}{
		{"nothing", "", "cut off"},
		{"a cut number", "80", "cut off"},
		{"a number of eleven bytes", "ffffffffffffffffffffff01", "too large"},
		{"a missing range", "801009", "cut off"},
		{"half a range", "8010090100", "cut off"},
		{"no range", "80100900", "no memory ranges"},
		{"too many ranges", "80100941", "more than 64"},
		{"an empty range", "8010090200060900", "empty"},
		{"an overlap", "801009020009080a", "overlapping"},
		{"ranges out of order", "80100902090200 06", "out of order"},
		{"a range up to the limit", "80100901008080802f", "too large"},
		{"a range that ends too high", "801009010080f01f", "too high"},
		{"a block below", "8010ffff1f010006", "hand-off block"},
		{"bytes behind", "8010090100060000", "bytes after"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, err := hex.DecodeString(strings.ReplaceAll(tt.witness, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			_, err = boot.ParseWitness(b)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("ParseWitness(%s) = %v, want %q", tt.witness, err, tt.want)
			}
		})
	}
}

func TestACPIFromLog(t *testing.T) {
	good := osimagetest.ACPIEvents()
	unnamed := edit(good, func(l eventlog.Log) { l[0].Name, l[1].Name, l[2].Name = "", "", "" })
	tests := []struct {
		name  string
		log   eventlog.Log
		named bool
		want  string // of the error
	}{
		{"named events", good, true, ""},
		{"events without names where names are not needed", unnamed, false, ""},
		{"events without names where they are", unnamed, true, `event 1 is called "", not "acpi-loader"`},
		{"others between them", append(eventlog.Log{{Type: 10, Payload: []byte("ACPI")}, {IMR: 1, Type: 10, Payload: []byte("ACPI DATA")}, {Type: 4, Payload: []byte("ACPI DATA")}}, good...), true, ""},
		{"another order", edit(good, func(l eventlog.Log) { l[0], l[1] = l[1], l[0] }), false, `called "acpi-rsdp", not "acpi-loader"`},
		{"two", good[:2], true, "2 of three"},
		{"none", nil, true, "0 of three"},
		{"four", append(good[:3:3], good[2]), true, "more than three"},
		{"no digest", edit(good, func(l eventlog.Log) { l[1].Digest = nil }), true, "event 2 has no digest"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, err := boot.ACPIFromLog(tt.log, tt.named)
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("ACPIFromLog() = %v, want %q", err, tt.want)
				}
				return
			}
			want := boot.ACPI{Loader: sha512.Sum384([]byte("acpi-loader")), RSDP: sha512.Sum384([]byte("acpi-rsdp")), Tables: sha512.Sum384([]byte("acpi-tables"))}
			if err != nil || a != want {
				t.Errorf("ACPIFromLog() = %x, %v, want %x", a, err, want)
			}
		})
	}
}

func edit(l eventlog.Log, change func(eventlog.Log)) eventlog.Log {
	l = slices.Clone(l)
	change(l)
	return l
}

func FuzzParseWitness(f *testing.F) {
	good, err := hex.DecodeString(witness)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("\x80\x10\x09\x01\x00\x06"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := boot.ParseWitness(b)
		if err != nil {
			return
		}
		again, err := boot.ParseWitness(l.Witness())
		if err != nil {
			t.Fatalf("ParseWitness(%x): %v", l.Witness(), err)
		}
		x, errX := l.HandOffBlock(4 << 30)
		y, errY := again.HandOffBlock(4 << 30)
		if x != y || errX != nil || errY != nil {
			t.Errorf("HandOffBlock = %x, %v and %x, %v of the same layout", x, errX, y, errY)
		}
	})
}
