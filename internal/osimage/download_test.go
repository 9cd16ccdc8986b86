package osimage_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/osimage"
	"teekms/internal/osimage/osimagetest"
)

// host serves image archives and counts the requests.
type host struct {
	*httptest.Server
	requests atomic.Int32
}

func newHost(t *testing.T, answer http.HandlerFunc) *host {
	t.Helper()
	h := &host{}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.requests.Add(1)
		answer(w, r)
	}))
	t.Cleanup(h.Close)
	return h
}

// serve answers with an archive at the path of the image's hash.
func serve(im *osimagetest.Image, archive []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Path != "/os/"+im.HashHex()+".tar.gz" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(archive)))
		_, _ = w.Write(archive) // The client may have gone.
	}
}

func (h *host) config(t *testing.T) osimage.Config {
	t.Helper()
	client := h.Client()
	t.Cleanup(client.CloseIdleConnections)
	return osimage.Config{CacheDir: t.TempDir(), DownloadURL: h.URL + "/os/{OS_IMAGE_HASH}.tar.gz", HTTP: client}
}

func (h *host) want(t *testing.T, requests int32) {
	t.Helper()
	if got := h.requests.Load(); got != requests {
		t.Errorf("%d downloads, want %d", got, requests)
	}
}

func cached(t *testing.T, cfg osimage.Config, names ...string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(append([]string{cfg.CacheDir, "images"}, names...)...))
	if err != nil {
		t.Fatal(err)
	}
	found := []string{}
	for _, e := range entries {
		found = append(found, e.Name())
	}
	return found
}

func wantBy(t *testing.T, v *osimage.Verifier, s osimage.Subject, by string) {
	t.Helper()
	got, err := v.Verify(t.Context(), s)
	if want := (osimage.Result{By: by, Registers: allRegisters}); err != nil || !cmp.Equal(got, want) {
		t.Errorf("Verify() = %+v, %v, want %+v", got, err, want)
	}
}

func wantUnavailable(t *testing.T, v *osimage.Verifier, s osimage.Subject, reason string) {
	t.Helper()
	if _, err := v.Verify(t.Context(), s); !errors.Is(err, osimage.ErrUnavailable) || !strings.Contains(err.Error(), reason) {
		t.Errorf("Verify() = %v, want ErrUnavailable with %q", err, reason)
	}
}

func TestDownload(t *testing.T) {
	im := osimagetest.New()
	im.Extra = map[string][]byte{"unlisted": []byte("dropped")}
	h := newHost(t, serve(im, im.Archive()))
	cfg := h.config(t)
	v := newVerifier(t, cfg)
	tests := []struct {
		name   string
		memory uint64
		change func(s *osimage.Subject)
		want   string // mismatch
	}{
		{"a guest of two GiB", 2 << 30, nil, ""},
		{"a guest of unusual memory", 1 << 30, nil, ""},
		{"a guest of much memory", 1 << 40, nil, ""},
		{"pages added in two passes", 2 << 30, func(s *osimage.Subject) { s.Claims.MRTD = twoPass(t, im) }, ""},
		{"a log without names", 2 << 30, func(s *osimage.Subject) { s.Log[0].Name, s.Log[1].Name, s.Log[2].Name = "", "", "" }, ""},
		{"a document that does not cover the memory", 1 << 30, func(s *osimage.Subject) { s.VMConfig = im.VMConfig(1<<30, true) }, ""},
		{"a document of another image", 2 << 30, func(s *osimage.Subject) {
			s.VMConfig = strings.Replace(im.VMConfig(2<<30, true), `"checksum_file":"`, `"checksum_file":"AAAA`, 1)
		}, ""},
		{"another firmware", 2 << 30, func(s *osimage.Subject) { change(&s.Claims.MRTD) }, "MRTD"},
		{"another machine", 2 << 30, func(s *osimage.Subject) { change(&s.Claims.RTMR[0]) }, "RTMR0"},
		{"another kernel", 2 << 30, func(s *osimage.Subject) { change(&s.Claims.RTMR[1]) }, "RTMR1"},
		{"the kernel of another memory", 2 << 30, func(s *osimage.Subject) { s.Claims.RTMR[1] = im.Boot(1 << 30).RTMR[1] }, "RTMR1"},
		{"another command line", 2 << 30, func(s *osimage.Subject) { change(&s.Claims.RTMR[2]) }, "RTMR2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := subject(im, tt.memory, false)
			if tt.change != nil {
				tt.change(&s)
			}
			if tt.want == "" {
				wantBy(t, v, s, "download")
				return
			}
			_, err := v.Verify(t.Context(), s)
			checkMismatch(t, err, tt.want)
		})
	}
	h.want(t, 1)
	if diff := cmp.Diff([]string{"bzImage", "initrd.gz", "metadata.json", "ovmf.fd", "sha256sum.txt"}, cached(t, cfg, im.HashHex())); diff != "" {
		t.Errorf("cache (-want +got):\n%s", diff)
	}
	t.Run("is not repeated by the next process", func(t *testing.T) {
		wantBy(t, newVerifier(t, cfg), subject(im, 2<<30, false), "download")
		h.want(t, 1)
	})
}

func TestLiteNeedsNoDownload(t *testing.T) {
	im := osimagetest.New()
	h := newHost(t, serve(im, im.Archive()))
	v := newVerifier(t, h.config(t))
	wantBy(t, v, subject(im, 2<<30, true), "lite")
	s := subject(im, 2<<30, true)
	change(&s.Claims.RTMR[1])
	_, err := v.Verify(t.Context(), s)
	checkMismatch(t, err, "RTMR1")
	h.want(t, 0)
}

func TestDamagedCacheIsFilledAgain(t *testing.T) {
	im := osimagetest.New()
	tests := []struct {
		name   string
		damage func(dir string) error
	}{
		{"a changed kernel", func(dir string) error { return os.WriteFile(filepath.Join(dir, "bzImage"), im.Files["ovmf.fd"], 0o600) }},
		{"a changed command line", func(dir string) error { return os.WriteFile(filepath.Join(dir, "metadata.json"), []byte("{}"), 0o600) }},
		{"a changed initrd", func(dir string) error { return os.WriteFile(filepath.Join(dir, "initrd.gz"), []byte("another"), 0o600) }},
		{"changed checksums", func(dir string) error { return os.WriteFile(filepath.Join(dir, "sha256sum.txt"), nil, 0o600) }},
		{"a missing file", func(dir string) error { return os.Remove(filepath.Join(dir, "ovmf.fd")) }},
		{"a link", func(dir string) error {
			return errors.Join(os.Rename(filepath.Join(dir, "bzImage"), filepath.Join(dir, "x")), os.Symlink("x", filepath.Join(dir, "bzImage")))
		}},
		{"a folder that is a file", func(dir string) error { return errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600)) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t, serve(im, im.Archive()))
			cfg := h.config(t)
			wantBy(t, newVerifier(t, cfg), subject(im, 2<<30, false), "download")
			if err := tt.damage(filepath.Join(cfg.CacheDir, "images", im.HashHex())); err != nil {
				t.Fatal(err)
			}
			wantBy(t, newVerifier(t, cfg), subject(im, 2<<30, false), "download")
			h.want(t, 2)
		})
	}
}

func TestDamageIsSeenWhereFilesAreReadAgain(t *testing.T) {
	im := osimagetest.New()
	h := newHost(t, serve(im, im.Archive()))
	cfg := h.config(t)
	v := newVerifier(t, cfg)
	s := subject(im, 1<<30, false)
	wantBy(t, v, s, "download")
	write(t, filepath.Join(cfg.CacheDir, "images", im.HashHex(), "bzImage"), "x")
	wantUnavailable(t, v, s, "bzImage has another checksum")
	wantBy(t, v, s, "download")
	h.want(t, 2)
}

// TestHostileArchives has archives that would do harm or prove nothing. None
// may leave anything behind.
func TestHostileArchives(t *testing.T) {
	im := osimagetest.New()
	sums := im.Sums()
	archive := func(members ...tar.Header) []byte {
		contents := make([][]byte, len(members))
		for i := range members {
			if members[i].Name == "sha256sum.txt" {
				contents[i] = sums
			}
		}
		return osimagetest.Archive(members, contents)
	}
	member := func(kind byte, name string) tar.Header {
		return tar.Header{Typeflag: kind, Name: name, Linkname: "../../../etc/passwd"}
	}
	edited := func(edit func(*osimagetest.Image)) []byte {
		other := osimagetest.New()
		edit(other)
		return other.Archive()
	}
	raw := func(b []byte) []byte {
		var zipped bytes.Buffer
		w := gzip.NewWriter(&zipped)
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return zipped.Bytes()
	}
	whole := im.Archive()
	tests := []struct {
		name    string
		archive []byte
		want    string
	}{
		{"no gzip", []byte("not gzip, not at all"), "opening image archive"},
		{"nothing", nil, "opening image archive"},
		{"gzip of something else", raw([]byte(strings.Repeat("x", 4096))), "reading image archive"},
		{"gzip of nothing", raw(nil), "sha256sum.txt"},
		{"a cut archive", whole[:len(whole)/2], "unexpected EOF"},
		{"a path", archive(member(tar.TypeReg, "a/b")), `"a/b", which is no flat name`},
		{"a path upward", archive(member(tar.TypeReg, "../escaped")), `"../escaped", which is no flat name`},
		{"a path upward behind a dot", archive(member(tar.TypeReg, "./../escaped")), "no flat name"},
		{"an absolute path", archive(member(tar.TypeReg, "/tmp/escaped")), "no flat name"},
		{"a hidden name", archive(member(tar.TypeReg, ".bashrc")), "no flat name"},
		{"a dot", archive(member(tar.TypeReg, "./.")), "no flat name"},
		{"a name with a space", archive(tar.Header{Typeflag: tar.TypeReg, Name: "a b"}), "no flat name"},
		{"a name of another alphabet", archive(member(tar.TypeReg, "kern\u0435l")), "no flat name"},
		{"a name of many letters", archive(member(tar.TypeReg, strings.Repeat("a", 200))), "no flat name"},
		{"a symbolic link", archive(member(tar.TypeSymlink, "bzImage")), "no regular file"},
		{"a hard link", archive(member(tar.TypeLink, "bzImage")), "no regular file"},
		{"a device", archive(member(tar.TypeChar, "bzImage")), "no regular file"},
		{"a pipe", archive(member(tar.TypeFifo, "bzImage")), "no regular file"},
		{"a folder", archive(member(tar.TypeDir, "images/")), "no regular file"},
		{"a global header", archive(tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"path": "x"}}), "no regular file"},
		{"a file twice", archive(member(tar.TypeReg, "a"), member(tar.TypeReg, "./a")), "twice"},
		{"too many files", archive(many(257)...), "more than 256 files"},
		{"no checksums", archive(member(tar.TypeReg, "a")), "sha256sum.txt"},
		{"checksums alone", archive(member(tar.TypeReg, "sha256sum.txt")), "missing or has another checksum"},
		{"another image", edited(func(o *osimagetest.Image) { o.Files["initrd.gz"] = []byte("other") }), "sha256sum.txt of the image has another hash"},
		{"a changed file that no register holds", edited(func(o *osimagetest.Image) {
			o.Extra = map[string][]byte{"sha256sum.txt": sums}
			o.Files["rootfs"] = []byte("other")
		}), "rootfs of the image is missing or has another checksum"},
		{"a missing file", edited(func(o *osimagetest.Image) {
			o.Extra = map[string][]byte{"sha256sum.txt": sums}
			delete(o.Files, "rootfs")
		}), "rootfs of the image is missing or has another checksum"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t, serve(im, tt.archive))
			cfg := h.config(t)
			wantUnavailable(t, newVerifier(t, cfg), subject(im, 2<<30, false), tt.want)
			if diff := cmp.Diff([]string{}, cached(t, cfg)); diff != "" {
				t.Errorf("left behind (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff([]string{}, cached(t, cfg, "..", "..")); strings.Contains(diff, "escaped") {
				t.Errorf("escaped: %s", diff)
			}
		})
	}
}

func many(n int) []tar.Header {
	members := make([]tar.Header, n)
	for i := range members {
		members[i] = tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint("file", i)}
	}
	return members
}

// TestUselessImages has images that are what their hash says, and cannot be
// measured.
func TestUselessImages(t *testing.T) {
	meta := func(text string) func(im *osimagetest.Image) {
		return func(im *osimagetest.Image) { im.Files["metadata.json"] = []byte(text) }
	}
	tests := []struct {
		name   string
		change func(im *osimagetest.Image)
		want   string
	}{
		{"no metadata", func(im *osimagetest.Image) { delete(im.Files, "metadata.json") }, "sha256sum.txt does not list metadata.json"},
		{"metadata that are not listed", func(im *osimagetest.Image) {
			im.Extra = map[string][]byte{"metadata.json": im.Files["metadata.json"]}
			delete(im.Files, "metadata.json")
		}, "sha256sum.txt does not list metadata.json"},
		{"metadata that are no JSON", meta("{"), "reading metadata.json"},
		{"no command line", meta(`{"bios":"ovmf.fd","kernel":"bzImage","initrd":"initrd.gz"}`), "no command line"},
		{"no firmware", meta(`{"cmdline":"x","kernel":"bzImage","initrd":"initrd.gz"}`), "names no kernel, initrd or bios"},
		{"a firmware elsewhere", meta(`{"cmdline":"x","bios":"../../ovmf.fd","kernel":"bzImage","initrd":"initrd.gz"}`), "names no kernel, initrd or bios"},
		{"a kernel that is not there", meta(`{"cmdline":"x","bios":"ovmf.fd","kernel":"vmlinuz","initrd":"initrd.gz"}`), "does not list vmlinuz"},
		{"an initrd that is not there", meta(`{"cmdline":"x","bios":"ovmf.fd","kernel":"bzImage","initrd":"none"}`), "does not list none"},
		{"a newer firmware", meta(`{"cmdline":"x","bios":"ovmf.fd","kernel":"bzImage","initrd":"initrd.gz","ovmf_variant":"stable202505"}`), "ovmf_variant that is not pre202505"},
		{"a firmware that is none", func(im *osimagetest.Image) { im.Files["ovmf.fd"] = []byte("x") }, "reading TDX metadata of firmware"},
		{"a kernel that is none", func(im *osimagetest.Image) { im.Files["bzImage"] = []byte("x") }, "not a bzImage"},
		{"an empty initrd", func(im *osimagetest.Image) { im.Files["initrd.gz"] = nil }, "initrd of 0 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			im := osimagetest.New()
			s := subject(im, 2<<30, false)
			tt.change(im)
			hash := im.Hash()
			s.OSImageHash = hash[:]
			h := newHost(t, serve(im, im.Archive()))
			wantUnavailable(t, newVerifier(t, h.config(t)), s, tt.want)
		})
	}
}

func TestDownloadLimits(t *testing.T) {
	im := osimagetest.New()
	whole := im.Archive()
	bomb := osimagetest.Archive([]tar.Header{{Typeflag: tar.TypeReg, Name: "zeros"}}, [][]byte{make([]byte, 1<<20)})
	sparse := osimagetest.Archive([]tar.Header{{Typeflag: tar.TypeReg, Name: "zeros", Size: 1 << 45}}, [][]byte{nil})
	tests := []struct {
		name   string
		limit  int64
		answer http.HandlerFunc
		want   string
	}{
		{"an archive as large as allowed", int64(len(whole)), serve(im, whole), "image archive holds more than"},
		{"an archive that says how large it is", int64(len(whole)) - 1, serve(im, whole), fmt.Sprintf("status 200, %d bytes", len(whole))},
		{"an archive that does not", 4096, func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			_, _ = w.Write(bytes.Repeat([]byte{0}, 4)) // The client may have gone.
			_, _ = io.Copy(w, neverZipped())           // Likewise.
		}, "opening image archive"},
		{"gzip without end", 1 << 16, func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			_, _ = w.Write(noise(1 << 17)) // The client may have gone.
		}, "image archive larger than 65536 bytes"},
		{"a bomb", 1 << 16, serve(im, bomb), "image archive holds more than 262144 bytes"},
		{"a member of terabytes", 1 << 16, serve(im, sparse), "image archive holds more than 262144 bytes"},
		{"no image", 1 << 16, http.NotFound, "status 404"},
		{"an error", 1 << 16, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, "status 500"},
		{"a part", 1 << 16, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusPartialContent) }, "status 206"},
		{"a cut answer", 1 << 16, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(whole[:100]) // The client may have gone.
		}, "EOF"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t, tt.answer)
			cfg := h.config(t)
			cfg.MaxDownload = tt.limit
			wantUnavailable(t, newVerifier(t, cfg), subject(im, 2<<30, false), tt.want)
			if left := cached(t, cfg); len(left) != 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

func neverZipped() io.Reader { return strings.NewReader(strings.Repeat("x", 1<<16)) }

// noise is an archive of one file that does not shrink.
func noise(size int) []byte {
	b := make([]byte, size)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return osimagetest.Archive([]tar.Header{{Typeflag: tar.TypeReg, Name: "noise"}}, [][]byte{b})
}

func TestDownloadEndsInTime(t *testing.T) {
	im := osimagetest.New()
	whole := im.Archive()
	h := newHost(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(whole[:1000]) // The client waits for the rest.
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	cfg := h.config(t)
	cfg.DownloadTimeout = 50 * time.Millisecond
	wantUnavailable(t, newVerifier(t, cfg), subject(im, 2<<30, false), "deadline exceeded")
}

func TestRedirects(t *testing.T) {
	im := osimagetest.New()
	archive := im.Archive()
	hops := func(n int) *host {
		return newHost(t, func(w http.ResponseWriter, r *http.Request) {
			if hop := len(r.URL.Query()["hop"]); hop < n {
				http.Redirect(w, r, r.URL.Path+"?"+strings.Repeat("hop=1&", hop+1), http.StatusFound)
				return
			}
			serve(im, archive)(w, r)
		})
	}
	withDefaultClient := func(h *host) *osimage.Verifier {
		cfg := h.config(t)
		cfg.HTTP = nil
		t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
		return newVerifier(t, cfg)
	}
	wantBy(t, withDefaultClient(hops(3)), subject(im, 2<<30, false), "download")
	wantUnavailable(t, withDefaultClient(hops(4)), subject(im, 2<<30, false), "more than three redirects")
}

func TestRedirectsKeepTLS(t *testing.T) {
	requests := map[string]*http.Request{}
	for _, scheme := range []string{"http", "https"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, scheme+"://host/", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		requests[scheme] = r
	}
	tests := []struct{ from, to, want string }{
		{"http", "http", ""},
		{"http", "https", ""},
		{"https", "https", ""},
		{"https", "http", "redirect from https to http"},
	}
	for _, tt := range tests {
		err := osimage.Client().CheckRedirect(requests[tt.to], []*http.Request{requests[tt.from]})
		if got := fmt.Sprint(err); got != tt.want && (err != nil || tt.want != "") {
			t.Errorf("redirect from %s to %s = %v, want %q", tt.from, tt.to, err, tt.want)
		}
	}
}

func TestConcurrentCallersShareADownload(t *testing.T) {
	im := osimagetest.New()
	archive, begun, goOn := im.Archive(), make(chan struct{}), make(chan struct{})
	h := newHost(t, func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		<-goOn
		serve(im, archive)(w, r)
	})
	v := newVerifier(t, h.config(t))
	// The first caller gives up; its download goes on for the others.
	ctx, cancel := context.WithCancel(t.Context())
	gaveUp := make(chan error)
	go func() {
		_, err := v.Verify(ctx, subject(im, 2<<30, false))
		gaveUp <- err
	}()
	<-begun
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) || !errors.Is(err, osimage.ErrUnavailable) {
		t.Errorf("Verify() after cancel = %v, want context.Canceled", err)
	}
	var group sync.WaitGroup
	for range 30 {
		group.Go(func() { wantBy(t, v, subject(im, 2<<30, false), "download") })
	}
	close(goOn)
	group.Wait()
	h.want(t, 1)
}

func TestFailuresAreRememberedForHalfAMinute(t *testing.T) {
	im := osimagetest.New()
	archive := im.Archive()
	var broken atomic.Bool
	broken.Store(true)
	h := newHost(t, func(w http.ResponseWriter, r *http.Request) {
		if broken.Load() {
			http.NotFound(w, r)
			return
		}
		serve(im, archive)(w, r)
	})
	var seconds atomic.Int64
	cfg := h.config(t)
	cfg.Now = func() time.Time { return time.Unix(1e9+seconds.Load(), 0) }
	v := newVerifier(t, cfg)
	s := subject(im, 2<<30, false)
	for range 3 {
		wantUnavailable(t, v, s, "status 404")
	}
	h.want(t, 1)
	broken.Store(false)
	seconds.Store(29)
	wantUnavailable(t, v, s, "status 404")
	h.want(t, 1)
	seconds.Store(30)
	wantBy(t, v, s, "download")
	h.want(t, 2)
}

func TestManyFailuresAreForgotten(t *testing.T) {
	h := newHost(t, http.NotFound)
	v := newVerifier(t, h.config(t))
	s := subject(osimagetest.New(), 2<<30, false)
	for i := range 300 {
		s.OSImageHash[0], s.OSImageHash[1] = byte(i), byte(i>>8)
		wantUnavailable(t, v, s, "status 404")
	}
	h.want(t, 300)
}

func TestCloseEndsDownloads(t *testing.T) {
	im := osimagetest.New()
	begun := make(chan struct{})
	h := newHost(t, func(_ http.ResponseWriter, r *http.Request) {
		close(begun)
		<-r.Context().Done()
	})
	v := newVerifier(t, h.config(t))
	failed := make(chan error)
	go func() {
		_, err := v.Verify(t.Context(), subject(im, 2<<30, false))
		failed <- err
	}()
	<-begun
	v.Close()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("Verify() = %v, want context.Canceled", err)
	}
	im.Files["x"] = nil
	wantUnavailable(t, v, subject(im, 2<<30, false), "closed")
}

func TestAnotherProcessMayBeFirst(t *testing.T) {
	im := osimagetest.New()
	archive := im.Archive()
	var cfg osimage.Config
	h := newHost(t, func(w http.ResponseWriter, r *http.Request) {
		dir := filepath.Join(cfg.CacheDir, "images", im.HashHex())
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Error(err)
		}
		for name, b := range im.Files {
			write(t, filepath.Join(dir, name), string(b))
		}
		write(t, filepath.Join(dir, "sha256sum.txt"), string(im.Sums()))
		serve(im, archive)(w, r)
	})
	cfg = h.config(t)
	wantBy(t, newVerifier(t, cfg), subject(im, 2<<30, false), "download")
	if diff := cmp.Diff([]string{im.HashHex()}, cached(t, cfg)); diff != "" {
		t.Errorf("cache (-want +got):\n%s", diff)
	}
}

func TestLeftOversOfADeadProcessAreRemoved(t *testing.T) {
	im := osimagetest.New()
	h := newHost(t, serve(im, im.Archive()))
	cfg := h.config(t)
	dir := filepath.Join(cfg.CacheDir, "images")
	for _, name := range []string{".new-1", ".new-2"} {
		if err := os.MkdirAll(filepath.Join(dir, name, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Now().Add(-25 * time.Hour)
	if err := os.Chtimes(filepath.Join(dir, ".new-1"), old, old); err != nil {
		t.Fatal(err)
	}
	wantBy(t, newVerifier(t, cfg), subject(im, 2<<30, false), "download")
	if diff := cmp.Diff([]string{".new-2", im.HashHex()}, cached(t, cfg)); diff != "" {
		t.Errorf("cache (-want +got):\n%s", diff)
	}
}

func TestClearCache(t *testing.T) {
	im := osimagetest.New()
	hash := im.HashHex()
	other := strings.Repeat("ab", 32)
	tests := []struct {
		name, image, config string
		want                error
		left                []string
		downloads           int32
	}{
		{"nothing", "", "", nil, []string{".new-x", other, hash}, 1},
		{"measurements alone", "", "all", nil, []string{".new-x", other, hash}, 1},
		{"all", "all", "all", nil, []string{".new-x"}, 2},
		{"one", hash, "", nil, []string{".new-x", other}, 2},
		{"one in capitals", strings.ToUpper(hash), "", nil, []string{".new-x", other}, 2},
		{"another", other, "", nil, []string{".new-x", hash}, 1},
		{"one that is not there", "00ff", "00", nil, []string{".new-x", other, hash}, 1},
		{"a path", "../images", "", osimage.ErrCacheKey, []string{".new-x", other, hash}, 1},
		{"a folder being filled", ".new-x", "", osimage.ErrCacheKey, []string{".new-x", other, hash}, 1},
		{"half a byte", "abc", "", osimage.ErrCacheKey, []string{".new-x", other, hash}, 1},
		{"a bad second key", "all", "All", osimage.ErrCacheKey, []string{".new-x", other, hash}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t, serve(im, im.Archive()))
			cfg := h.config(t)
			v := newVerifier(t, cfg)
			if err := v.ClearCache(t.Context(), "all", ""); err != nil {
				t.Fatalf("ClearCache() of no cache = %v", err)
			}
			wantBy(t, v, subject(im, 2<<30, false), "download")
			for _, name := range []string{".new-x", other} {
				if err := os.MkdirAll(filepath.Join(cfg.CacheDir, "images", name, "x"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if err := v.ClearCache(t.Context(), tt.image, tt.config); !errors.Is(err, tt.want) {
				t.Errorf("ClearCache(%q, %q) = %v, want %v", tt.image, tt.config, err, tt.want)
			}
			left := cached(t, cfg)
			if diff := cmp.Diff(sorted(tt.left), sorted(left)); diff != "" {
				t.Errorf("cache (-want +got):\n%s", diff)
			}
			wantBy(t, v, subject(im, 2<<30, false), "download")
			h.want(t, tt.downloads)
		})
	}
}

func TestClearCacheWithoutDownloads(t *testing.T) {
	v := newVerifier(t, osimage.Config{})
	if err := v.ClearCache(t.Context(), "all", "all"); err != nil {
		t.Errorf("ClearCache() = %v", err)
	}
	if err := v.ClearCache(t.Context(), "x", ""); !errors.Is(err, osimage.ErrCacheKey) || err.Error() != "invalid cache key" {
		t.Errorf("ClearCache(x) = %v, want %v", err, osimage.ErrCacheKey)
	}
}

func sorted(names []string) []string {
	names = slices.Clone(names)
	slices.Sort(names)
	return names
}
