package osimage_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"teekms/internal/osimage"
	"teekms/internal/osimage/osimagetest"
)

func FuzzMeasurementDocument(f *testing.F) {
	good := osimagetest.New().Measurement()
	f.Add(good)
	f.Add(osimagetest.CBOR(osimagetest.Map{"version", uint64(3), "image", osimagetest.Map{}}))
	f.Add([]byte("\xbf\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if osimage.ParseLite(b) != nil {
			return
		}
		// The form is strict: a document cannot be written in two ways that
		// differ in length.
		if len(b) > 2*len(good) {
			t.Errorf("a document of %d bytes is read", len(b))
		}
	})
}

func FuzzChecksums(f *testing.F) {
	f.Add(osimagetest.New().Sums())
	f.Add([]byte(strings.Repeat("0", 64) + " *a"))
	f.Add([]byte("\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		listed, err := osimage.ParseSums(b)
		if err != nil {
			return
		}
		var text bytes.Buffer
		for _, name := range slices.Sorted(maps.Keys(listed)) {
			if !osimage.FlatName(name) || filepath.Base(name) != name {
				t.Errorf("name %q is not flat", name)
			}
			fmt.Fprintf(&text, "%x  %s\n", listed[name], name)
		}
		again, err := osimage.ParseSums(text.Bytes())
		if err != nil || !maps.Equal(listed, again) {
			t.Errorf("ParseSums(%q) = %v, %v, want %v", text.Bytes(), again, err, listed)
		}
	})
}

func FuzzAllowlist(f *testing.F) {
	f.Add([]byte(entry(subject(osimagetest.New(), 2<<30, false))))
	f.Add([]byte("[[image]]\n"))
	f.Add([]byte("image = 1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := osimage.ParseAllowlist(b)
		if err == nil && n > 0 && !bytes.Contains(b, []byte("image")) {
			t.Errorf("ParseAllowlist(%q) found %d images", b, n)
		}
	})
}

func FuzzVMConfig(f *testing.F) {
	im := osimagetest.New()
	f.Add(im.VMConfig(2<<30, true))
	f.Add(`{"vm_config": "{\"memory_size\":1}"}`)
	f.Add(`{"vm_config": {"vm_config":null}}`)
	f.Add(`{"vm_config": ""}`)
	f.Fuzz(func(t *testing.T, text string) {
		memory, err := osimage.ParseMemory(text)
		wrapped, errWrapped := osimage.ParseMemory(`{"vm_config":` + text + `}`)
		if err == nil && errWrapped == nil && memory != wrapped {
			t.Errorf("memory %d of %q, but %d when it is wrapped", memory, text, wrapped)
		}
	})
}

func FuzzMetadata(f *testing.F) {
	f.Add(osimagetest.New().Files["metadata.json"])
	f.Add([]byte(`{"cmdline":"x","bios":"..","kernel":"a/b","initrd":""}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		names, err := osimage.ParseMetadata(b)
		if err != nil {
			return
		}
		for _, name := range names {
			if filepath.Base(name) != name || name[0] == '.' {
				t.Errorf("name %q is not flat", name)
			}
		}
	})
}

func FuzzArchive(f *testing.F) {
	im := osimagetest.New()
	im.Files = map[string][]byte{"a": []byte("b")}
	f.Add(im.Archive())
	f.Add(osimagetest.Archive([]tar.Header{{Typeflag: tar.TypeSymlink, Name: "a", Linkname: "/etc/passwd"}}, [][]byte{nil}))
	f.Add(osimagetest.Archive([]tar.Header{{Typeflag: tar.TypeReg, Name: "../a"}}, [][]byte{[]byte("x")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		parent := t.TempDir()
		if err := os.Mkdir(filepath.Join(parent, "in"), 0o700); err != nil {
			t.Fatal(err)
		}
		dir, err := os.OpenRoot(filepath.Join(parent, "in"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = dir.Close() }()
		const limit = 4096
		files, err := osimage.Unpack(dir, bytes.NewReader(b), limit)
		if outside, _ := os.ReadDir(parent); len(outside) != 1 {
			t.Errorf("files outside: %v", outside)
		}
		inside, _ := os.ReadDir(filepath.Join(parent, "in"))
		total := int64(0)
		for _, e := range inside {
			info, err := e.Info()
			if err != nil || !info.Mode().IsRegular() {
				t.Fatalf("%s is no regular file: %v", e.Name(), err)
			}
			total += info.Size()
		}
		if total > limit {
			t.Errorf("%d bytes unpacked, more than %d", total, limit)
		}
		if err != nil {
			return
		}
		if len(inside) != len(files) {
			t.Errorf("%d files unpacked, %d returned", len(inside), len(files))
		}
		for name, want := range files {
			got, err := os.ReadFile(filepath.Join(parent, "in", name))
			if err != nil || sha256.Sum256(got) != want {
				t.Errorf("%s = %q, %v, has another checksum", name, got, err)
			}
		}
	})
}
