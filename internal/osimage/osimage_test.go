package osimage_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"teekms/internal/attest"
	"teekms/internal/osimage"
	"teekms/internal/osimage/boot"
	"teekms/internal/osimage/osimagetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var allRegisters = []string{"MRTD", "RTMR0", "RTMR1", "RTMR2"}

func newVerifier(t *testing.T, cfg osimage.Config) *osimage.Verifier {
	t.Helper()
	cfg.Verify = true
	v, err := osimage.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

// subject returns what a guest of the image with that much memory shows.
func subject(im *osimagetest.Image, memory uint64, lite bool) osimage.Subject {
	g, hash := im.Boot(memory), im.Hash()
	c := &attest.Claims{MRTD: g.MRTD}
	copy(c.RTMR[:3], g.RTMR[:])
	return osimage.Subject{Claims: c, Log: g.Log, OSImageHash: hash[:], VMConfig: im.VMConfig(memory, lite)}
}

func change(m *attest.Measurement) { m[47] ^= 1 }

func TestWithoutVerificationEveryImageIsUnverified(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	v, err := osimage.New(osimage.Config{AllowlistFile: "/does/not/exist", Log: zap.New(core)})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	got, err := v.Verify(t.Context(), osimage.Subject{OSImageHash: []byte{1, 2}, VMConfig: "{"})
	if want := (osimage.Result{By: "unverified"}); err != nil || !cmp.Equal(got, want) {
		t.Errorf("Verify() = %+v, %v, want %+v", got, err, want)
	}
	want := map[string]any{"by": "unverified", "os_image_hash": "0102", "registers": []any{}}
	if diff := cmp.Diff(want, logs.All()[0].ContextMap()); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

func TestVerifyRefusesWhatNobodyDescribes(t *testing.T) {
	im := osimagetest.New()
	v := newVerifier(t, osimage.Config{})
	tests := []struct {
		name   string
		change func(s *osimage.Subject)
		want   string
	}{
		{"no Claims", func(s *osimage.Subject) { s.Claims = nil }, "no Claims"},
		{"no hash", func(s *osimage.Subject) { s.OSImageHash = nil }, "hash of 0 bytes"},
		{"a short hash", func(s *osimage.Subject) { s.OSImageHash = s.OSImageHash[:20] }, "hash of 20 bytes"},
		{"no document", func(s *osimage.Subject) { s.VMConfig = im.VMConfig(2<<30, false) }, "without a measurement document"},
		{"no VM config", func(s *osimage.Subject) { s.VMConfig = "" }, "without a measurement document"},
		{"a VM config that is no JSON", func(s *osimage.Subject) { s.VMConfig = "{" }, "reading VM config"},
		{"a VM config of megabytes", func(s *osimage.Subject) { s.VMConfig = strings.Repeat(" ", 1<<20+1) }, "too large"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := subject(im, 2<<30, true)
			tt.change(&s)
			_, err := v.Verify(t.Context(), s)
			if !errors.Is(err, osimage.ErrNotVerified) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Verify() = %v, want ErrNotVerified with %q", err, tt.want)
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "images.toml")
	if err := os.WriteFile(bad, []byte("[[images]]"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		cfg  osimage.Config
		want string
	}{
		{"an allowlist that is not there", osimage.Config{AllowlistFile: bad + "x"}, "reading allowlist"},
		{"an invalid allowlist", osimage.Config{AllowlistFile: bad}, "unknown key"},
		{"a URL without a hash", osimage.Config{DownloadURL: "http://h/x.tar.gz", CacheDir: "x"}, "not an http or https URL with"},
		{"a URL of another kind", osimage.Config{DownloadURL: "file:///{OS_IMAGE_HASH}", CacheDir: "x"}, "not an http"},
		{"no URL", osimage.Config{DownloadURL: "http://\x00/{OS_IMAGE_HASH}", CacheDir: "x"}, "reading download URL"},
		{"no cache directory", osimage.Config{DownloadURL: "http://h/{OS_IMAGE_HASH}"}, "needs a cache directory"},
		{"a negative limit", osimage.Config{DownloadURL: "http://h/{OS_IMAGE_HASH}", CacheDir: "x", MaxDownload: -1}, "size limit"},
		{"a negative timeout", osimage.Config{DownloadURL: "http://h/{OS_IMAGE_HASH}", CacheDir: "x", DownloadTimeout: -time.Second}, "timeout"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.Verify = true
			if _, err := osimage.New(tt.cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("New() = %v, want %q", err, tt.want)
			}
		})
	}
}

// entry writes an allowlist entry for what a guest shows.
func entry(s osimage.Subject) string {
	return fmt.Sprintf("[[image]]\nos_image_hash = %q\nmrtd = %q\nrtmr1 = %q\nrtmr2 = %q\nnote = \"test\"\n",
		fmt.Sprintf("%x", s.OSImageHash), fmt.Sprintf("%x", s.Claims.MRTD),
		fmt.Sprintf("%x", s.Claims.RTMR[1]), fmt.Sprintf("%X", s.Claims.RTMR[2]))
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// writeOld writes a file that was last changed an hour ago.
func writeOld(t testing.TB, name, text string) time.Time {
	t.Helper()
	old := time.Now().Add(-time.Hour)
	if err := errors.Join(os.WriteFile(name, []byte(text), 0o600), os.Chtimes(name, old, old)); err != nil {
		t.Fatal(err)
	}
	return old
}

func TestAllowlist(t *testing.T) {
	im := osimagetest.New()
	listed := subject(im, 2<<30, true)
	second := subject(im, 2<<30, true)
	change(&second.Claims.MRTD)
	name := filepath.Join(t.TempDir(), "images.toml")
	write(t, name, entry(second)+entry(listed))
	v := newVerifier(t, osimage.Config{AllowlistFile: name})
	tests := []struct {
		name   string
		change func(s *osimage.Subject)
		want   string // mismatch
	}{
		{"a listed image", func(*osimage.Subject) {}, ""},
		{"its other entry", func(s *osimage.Subject) { change(&s.Claims.MRTD) }, ""},
		{"another machine", func(s *osimage.Subject) { change(&s.Claims.RTMR[0]); s.Log = nil }, ""},
		{"another firmware", func(s *osimage.Subject) { s.Claims.MRTD[0]++ }, "MRTD"},
		{"another kernel", func(s *osimage.Subject) { change(&s.Claims.RTMR[1]) }, "RTMR1"},
		{"another command line", func(s *osimage.Subject) { change(&s.Claims.RTMR[2]) }, "RTMR2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := subject(im, 2<<30, true)
			tt.change(&s)
			got, err := v.Verify(t.Context(), s)
			if tt.want != "" {
				checkMismatch(t, err, tt.want)
				return
			}
			want := osimage.Result{By: "allowlist", Registers: []string{"MRTD", "RTMR1", "RTMR2"}}
			if err != nil || !cmp.Equal(got, want) {
				t.Errorf("Verify() = %+v, %v, want %+v", got, err, want)
			}
		})
	}
}

func checkMismatch(t *testing.T, err error, register string) {
	t.Helper()
	m, ok := errors.AsType[*osimage.MismatchError](err)
	if !ok || m.Register != register || err.Error() != register+" does not match" || !errors.Is(err, osimage.ErrNotVerified) {
		t.Errorf("Verify() = %v, want that %s does not match", err, register)
	}
}

func TestUnlistedImagesAreForTheOtherWays(t *testing.T) {
	im := osimagetest.New()
	other := subject(im, 2<<30, true)
	other.OSImageHash = make([]byte, 32)
	other.OSImageHash[0] = 1
	name := filepath.Join(t.TempDir(), "images.toml")
	write(t, name, entry(other))
	v := newVerifier(t, osimage.Config{AllowlistFile: name})
	if got, err := v.Verify(t.Context(), subject(im, 2<<30, true)); err != nil || got.By != "lite" {
		t.Errorf("Verify(unlisted) = %+v, %v, want lite", got, err)
	}
}

func TestAllowlistIsReadAgainWhenItChanges(t *testing.T) {
	s := subject(osimagetest.New(), 2<<30, false)
	name := filepath.Join(t.TempDir(), "images.toml")
	old := writeOld(t, name, entry(s))
	v := newVerifier(t, osimage.Config{AllowlistFile: name})
	verify := func() error {
		_, err := v.Verify(t.Context(), s)
		return err
	}
	if err := verify(); err != nil {
		t.Fatal(err)
	}
	// Nothing tells that it changed: it is not read.
	text := strings.Replace(entry(s), `"test"`, `[[[[[[`, 1)
	write(t, name, text)
	if err := os.Chtimes(name, old, old); err != nil {
		t.Fatal(err)
	}
	if err := verify(); err != nil {
		t.Errorf("Verify() = %v, want the list that was read", err)
	}
	if err := os.Chtimes(name, old.Add(time.Second), old.Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := verify(); !errors.Is(err, osimage.ErrUnavailable) || !strings.Contains(err.Error(), "reading allowlist") {
			t.Errorf("Verify() after a bad edit = %v, want ErrUnavailable", err)
		}
	}
	write(t, name, "")
	if err := verify(); !errors.Is(err, osimage.ErrNotVerified) {
		t.Errorf("Verify() after the list was emptied = %v, want ErrNotVerified", err)
	}
	// Two edits of one size within the resolution of file times.
	write(t, name, entry(s))
	if err := verify(); err != nil {
		t.Errorf("Verify() after the entry came back = %v", err)
	}
	now := time.Now()
	for range 2 {
		write(t, name, entry(s))
		if err := errors.Join(os.Chtimes(name, now, now), verify()); err != nil {
			t.Errorf("Verify() of a good list = %v", err)
		}
		write(t, name, text)
		if err := errors.Join(os.Chtimes(name, now, now), verify()); !errors.Is(err, osimage.ErrUnavailable) {
			t.Errorf("Verify() after a bad edit within the same instant = %v, want ErrUnavailable", err)
		}
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if err := verify(); !errors.Is(err, osimage.ErrUnavailable) {
		t.Errorf("Verify() without the file = %v, want ErrUnavailable", err)
	}
}

func TestAllowlistRefuses(t *testing.T) {
	s := subject(osimagetest.New(), 2<<30, false)
	s.Claims.MRTD[0] = 0
	good := entry(s)
	tests := []struct{ name, text, want string }{
		{"what is no TOML", "[[image", "reading allowlist"},
		{"an unknown key", good + "rtmr0 = \"00\"\n", "unknown key"},
		{"a key twice", good + "note = \"again\"\n", "reading allowlist"},
		{"a hash that is missing", strings.Replace(good, "os_image_hash", "note2", 1), "unknown key"},
		{"no registers", "[[image]]\n", "os_image_hash is not 64 hex digits"},
		{"a register that is too short", strings.Replace(good, "mrtd = \"0", "mrtd = \"", 1), "mrtd is not 96 hex digits"},
		{"a register that is no hex", strings.Replace(good, "rtmr1 = \"", "rtmr1 = \"zz", 1), "rtmr1 is not 96 hex digits"},
		{"a register of zeros", strings.Replace(good, "note", "#", 1) + "[[image]]\nos_image_hash = \"" + strings.Repeat("01", 32) + "\"\nmrtd = \"" + strings.Repeat("00", 48) + "\"\n", "image 2: mrtd is not 96 hex digits, or zero"},
		{"too many images", strings.Repeat("[[image]]\n", 10001), "more than 10000"},
		{"megabytes", strings.Repeat("#", 4<<20+1), "reading allowlist"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "images.toml")
			write(t, name, tt.text)
			if _, err := osimage.New(osimage.Config{Verify: true, AllowlistFile: name}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("New() = %v, want %q", err, tt.want)
			}
		})
	}
}

func TestLite(t *testing.T) {
	im := osimagetest.New()
	fw := sha512.Sum384(im.Files["ovmf.fd"])
	v := newVerifier(t, osimage.Config{})
	tests := []struct {
		name   string
		memory uint64
		change func(s *osimage.Subject)
		want   string // mismatch
	}{
		{"a guest of two GiB", 2 << 30, nil, ""},
		{"a guest of the smallest usual memory", 0xB0000000, nil, ""},
		{"a guest of a TiB", 1 << 40, nil, ""},
		{"pages added in two passes", 2 << 30, func(s *osimage.Subject) { s.Claims.MRTD = twoPass(t, im) }, ""},
		{"a VM config within a system config", 2 << 30, func(s *osimage.Subject) { s.VMConfig = `{"a":1,"vm_config": ` + s.VMConfig + `}` }, ""},
		{"a VM config as text within a system config", 2 << 30, func(s *osimage.Subject) {
			text, err := json.Marshal(map[string]string{"vm_config": s.VMConfig})
			if err != nil {
				t.Fatal(err)
			}
			s.VMConfig = string(text)
		}, ""},
		{"a full log", 2 << 30, func(s *osimage.Subject) {
			e := s.Log[0]
			e.Payload, e.Name = []byte("separator"), ""
			s.Log = append(s.Log, e)
		}, ""},
		{"another firmware", 2 << 30, func(s *osimage.Subject) { s.Claims.MRTD = fw }, "MRTD"},
		{"another machine", 2 << 30, func(s *osimage.Subject) { change(&s.Claims.RTMR[0]) }, "RTMR0"},
		{"other ACPI tables than the log says", 2 << 30, func(s *osimage.Subject) { s.Log[2].Digest = make([]byte, 48) }, "RTMR0"},
		{"other memory than it says", 2 << 30, func(s *osimage.Subject) { s.VMConfig = im.VMConfig(4<<30, true) }, "RTMR0"},
		{"another kernel", 2 << 30, func(s *osimage.Subject) { change(&s.Claims.RTMR[1]) }, "RTMR1"},
		{"another command line", 2 << 30, func(s *osimage.Subject) { change(&s.Claims.RTMR[2]) }, "RTMR2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := subject(im, tt.memory, true)
			if tt.change != nil {
				tt.change(&s)
			}
			got, err := v.Verify(t.Context(), s)
			if tt.want != "" {
				checkMismatch(t, err, tt.want)
				return
			}
			if want := (osimage.Result{By: "lite", Registers: allRegisters}); err != nil || !cmp.Equal(got, want) {
				t.Errorf("Verify() = %+v, %v, want %+v", got, err, want)
			}
		})
	}
}

func twoPass(t *testing.T, im *osimagetest.Image) attest.Measurement {
	t.Helper()
	fw, err := boot.ParseFirmware(im.Files["ovmf.fd"])
	if err != nil {
		t.Fatal(err)
	}
	return fw.MRTD.TwoPass
}

// TestLiteRefuses has one flaw in each document.
func TestLiteRefuses(t *testing.T) {
	digest := make([]byte, 48)
	document := func(change func(top, image, tdvf, mrtd osimagetest.Map) osimagetest.Map) []byte {
		image := osimagetest.Map{"cmdline_sha384", digest, "kernel_authenticode", digest, "initrd_sha384", digest}
		mrtd := osimagetest.Map{"single_pass", digest, "two_pass", digest}
		tdvf := osimagetest.Map{"ovmf", "pre202505", "mrtd", mrtd, "td_hob", []byte("\x80\x10\x09\x01\x00\x06")}
		top := osimagetest.Map{"version", uint64(3), "image", image, "tdvf", tdvf}
		return osimagetest.CBOR(change(top, image, tdvf, mrtd))
	}
	type m = osimagetest.Map
	set := func(which func(top, image, tdvf, mrtd m) m, i int, key string, value any) []byte {
		return document(func(top, image, tdvf, mrtd m) m {
			pairs := which(top, image, tdvf, mrtd)
			pairs[2*i], pairs[2*i+1] = key, value
			return top
		})
	}
	top := func(top, _, _, _ m) m { return top }
	image := func(_, image, _, _ m) m { return image }
	tdvf := func(_, _, tdvf, _ m) m { return tdvf }
	mrtd := func(_, _, _, mrtd m) m { return mrtd }
	tests := []struct {
		name     string
		document []byte
		want     string
	}{
		{"an older version", set(top, 0, "version", uint64(2)), "version is not 3"},
		{"a version as text", set(top, 0, "version", "3"), "version is not 3"},
		{"no version", set(top, 0, "Version", uint64(3)), "version is not 3"},
		{"an unknown key", document(func(top, _, _, _ m) m { return append(top, "more", uint64(1)) }), "unknown keys"},
		{"no image", set(top, 1, "image2", m{}), "image is not a map of 3"},
		{"an image that is no map", set(top, 1, "image", uint64(1)), "image is not a map of 3"},
		{"an image with more in it", set(top, 1, "image", m{"a", "a", "b", "b", "c", "c", "d", "d"}), "image is not a map of 3"},
		{"no command line", set(image, 0, "cmdline", digest), "cmdline_sha384 is not a digest"},
		{"a command line as text", set(image, 0, "cmdline_sha384", string(digest)), "cmdline_sha384 is not a digest"},
		{"a kernel of 47 bytes", set(image, 1, "kernel_authenticode", digest[:47]), "kernel_authenticode is not a digest"},
		{"an initrd of 49 bytes", set(image, 2, "initrd_sha384", append(digest, 0)), "initrd_sha384 is not a digest"},
		{"no tdvf", set(top, 2, "tdvf2", m{}), "tdvf is not a map of 3"},
		{"another firmware", set(tdvf, 0, "ovmf", "stable202505"), "ovmf is not pre202505"},
		{"no mrtd", set(tdvf, 1, "mrtd", digest), "mrtd is not a map of 2"},
		{"no single pass", set(mrtd, 0, "singlepass", digest), "single_pass is not a digest"},
		{"an empty second pass", set(mrtd, 1, "two_pass", []byte{}), "two_pass is not a digest"},
		{"no hand-off block", set(tdvf, 2, "td_hob2", digest), "td_hob is not a byte string"},
		{"a bad hand-off block", set(tdvf, 2, "td_hob", []byte{1}), "td_hob: number"},
		{"a key twice", set(top, 1, "version", m{}), "there twice"},
		{"nothing", nil, "ends too early"},
		{"no map", osimagetest.CBOR("text"), "not a map"},
		{"bytes behind", append(set(top, 0, "version", uint64(3)), 0), "bytes after"},
		{"a cut text", []byte("\xa1\x67vers"), "ends too early"},
		{"a text of exabytes", []byte("\xa1\x7b\xff\xff\xff\xff\xff\xff\xff\xff"), "ends too early"},
		{"a map of exabytes", []byte("\xbb\xff\xff\xff\xff\xff\xff\xff\xff"), "too many items"},
		{"maps in maps", bytes.Repeat([]byte("\xa1\x61a"), 10000), "too deep"},
		{"too many items", append([]byte{0xb8, 40}, manyPairs(40)...), "too many items"},
		{"a map without end", []byte("\xbf\xff"), "unknown length"},
		{"a list", []byte("\xa1\x61a\x80"), "item of type 4"},
		{"a negative number", []byte("\xa1\x61a\x20"), "item of type 1"},
		{"a key that is a number", []byte("\xa1\x01\x01"), "key that is no text"},
		{"a number in two bytes where one does", []byte("\xa1\x61a\x18\x17"), "shortest form"},
		{"a number in four bytes where two do", []byte("\xa1\x61a\x1a\x00\x00\xff\xff"), "shortest form"},
		{"a cut number", []byte("\xa1\x61a\x19\x01"), "ends too early"},
		{"text that is not UTF-8", []byte("\xa1\x61\xff\x01"), "not UTF-8"},
		{"a document of megabytes", make([]byte, 64<<10+1), "document too large"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			im := osimagetest.New()
			s := subject(im, 2<<30, false)
			im.Files["measurement.tdx.cbor"] = tt.document
			hash := im.Hash()
			s.OSImageHash, s.VMConfig = hash[:], im.VMConfig(2<<30, true)
			_, err := newVerifier(t, osimage.Config{}).Verify(t.Context(), s)
			if !errors.Is(err, osimage.ErrNotVerified) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Verify() = %v, want ErrNotVerified with %q", err, tt.want)
			}
		})
	}
}

func manyPairs(n int) []byte {
	var b []byte
	for i := range n {
		b = append(b, 0x61, byte('0'+i), 1)
	}
	return b
}

// TestLiteRefusesWhatBindsNothing has flaws around a document that is right.
func TestLiteRefusesWhatBindsNothing(t *testing.T) {
	im := osimagetest.New()
	bound := func(checksums []byte, document []byte) func(s *osimage.Subject) {
		return func(s *osimage.Subject) {
			text, err := json.Marshal(map[string]any{"memory_size": 2 << 30, "tdx_measurement": map[string]any{"checksum_file": checksums, "measurement": document}})
			if err != nil {
				t.Fatal(err)
			}
			hash := sha256.Sum256(checksums)
			s.VMConfig, s.OSImageHash = string(text), hash[:]
		}
	}
	document := im.Files["measurement.tdx.cbor"]
	line := fmt.Sprintf("%x  measurement.tdx.cbor\n", sha256.Sum256(document))
	tests := []struct {
		name   string
		change func(s *osimage.Subject)
		want   string
	}{
		{"another hash", func(s *osimage.Subject) { s.OSImageHash[0]++ }, "checksum file is not that of the OS image hash"},
		{"another document", bound([]byte(line), append([]byte{0}, document...)), "not the measurement.tdx.cbor that the checksum file lists"},
		{"a document that is not listed", bound([]byte(strings.Replace(line, "tdx", "snp", 1)), document), "not the measurement.tdx.cbor that the checksum file lists"},
		{"an empty checksum file", bound(nil, document), "sha256sum.txt is empty"},
		{"a document listed twice", bound([]byte(line+line), document), "twice"},
		{"a path", bound([]byte(strings.Replace(line, "meas", "../meas", 1)), document), "not a flat name"},
		{"a checksum file of megabytes", bound([]byte(strings.Repeat(line, 1000)), document), "sha256sum.txt too large"},
		{"too many files", bound(manyLines(300), document), "more than 256 files"},
		{"an unusual memory", func(s *osimage.Subject) { s.VMConfig = im.VMConfig(1<<30, true) }, "does not cover a memory of 1073741824 bytes"},
		{"no memory", func(s *osimage.Subject) { s.VMConfig = im.VMConfig(0, true) }, "does not cover a memory of 0 bytes"},
		{"more memory than there is", func(s *osimage.Subject) { s.VMConfig = im.VMConfig(1<<60, true) }, "memory of 1152921504606846976 bytes"},
		{"no ACPI events", func(s *osimage.Subject) { s.Log = nil }, "0 of three ACPI DATA events"},
		{"a fourth ACPI event", func(s *osimage.Subject) { s.Log = append(s.Log, s.Log[2]) }, "more than three ACPI DATA events"},
		{"ACPI events without names", func(s *osimage.Subject) { s.Log[0].Name = "" }, `called "", not "acpi-loader"`},
		{"base64 that is none", func(s *osimage.Subject) {
			s.VMConfig = `{"memory_size":2147483648,"tdx_measurement":{"checksum_file":"!","measurement":""}}`
		}, "reading VM config"},
		{"VM configs in VM configs", func(s *osimage.Subject) { s.VMConfig = `{"vm_config":{"vm_config":{"vm_config":{}}}}` }, "VM config within a VM config"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := subject(im, 2<<30, true)
			tt.change(&s)
			_, err := newVerifier(t, osimage.Config{}).Verify(t.Context(), s)
			if !errors.Is(err, osimage.ErrNotVerified) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Verify() = %v, want ErrNotVerified with %q", err, tt.want)
			}
		})
	}
}

func manyLines(n int) []byte {
	var b []byte
	for i := range n {
		b = fmt.Appendf(b, "%064x  file%d\n", i, i)
	}
	return b
}
