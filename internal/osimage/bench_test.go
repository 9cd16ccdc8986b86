package osimage_test

import (
	"path/filepath"
	"testing"

	"teekms/internal/osimage"
	"teekms/internal/osimage/osimagetest"
)

func BenchmarkVerify(b *testing.B) {
	im := osimagetest.New()
	s := subject(im, 8<<30, true)
	name := filepath.Join(b.TempDir(), "images.toml")
	benchmarks := []struct {
		name string
		list string
	}{{"lite", ""}, {"allowlist", entry(s)}}
	for _, bb := range benchmarks {
		b.Run(bb.name, func(b *testing.B) {
			cfg := osimage.Config{Verify: true}
			if bb.list != "" {
				cfg.AllowlistFile = name
				writeOld(b, name, bb.list)
			}
			v, err := osimage.New(cfg)
			if err != nil {
				b.Fatal(err)
			}
			defer v.Close()
			for b.Loop() {
				if got, err := v.Verify(b.Context(), s); err != nil || got.By != bb.name {
					b.Fatal(got, err)
				}
			}
		})
	}
}
