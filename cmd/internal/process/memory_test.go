package process_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"teekms/cmd/internal/process"
)

// residentKiB is how much of the mapping that begins at start is in memory.
func residentKiB(t *testing.T, start uintptr) int {
	t.Helper()
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(smaps), fmt.Sprintf("\n%x-", start))
	_, rest, found := strings.Cut(rest, "\nRss:")
	if !found {
		t.Fatalf("no mapping at %x in\n%s", start, smaps)
	}
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib
}

// TestForgetStart maps a file as a program is, beside this program: what was read of
// it is not in memory any more, and is read again.
func TestForgetStart(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "program"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := bytes.Repeat([]byte("constant"), 1<<17)
	if _, err := f.Write(want); err != nil {
		t.Fatal(err)
	}
	mapped, err := unix.Mmap(int(f.Fd()), 0, len(want), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Munmap(mapped); err != nil {
			t.Error(err)
		}
	}()
	start := reflect.ValueOf(mapped).Pointer()
	for _, when := range []string{"first", "again"} {
		if !bytes.Equal(mapped, want) {
			t.Errorf("what is mapped changed before it was read %s", when)
		}
		if kib := residentKiB(t, start); kib < len(want)/1024 {
			t.Errorf("%d KiB are in memory after reading %s, want all", kib, when)
		}
		if err := process.ForgetStart(); err != nil {
			t.Fatal(err)
		}
		if kib := residentKiB(t, start); kib != 0 {
			t.Errorf("%d KiB stayed in memory after reading %s", kib, when)
		}
	}
}

// TestOnlyCleanMappings looks at what memory is made of: what is not in a file as it
// is in memory must stay.
func TestOnlyCleanMappings(t *testing.T) {
	const clean = "\nRss: 8 kB\nAnonymous: 0 kB\nVmFlags: rd mr\n"
	tests := []struct {
		name, smaps string
		want        [][2]uintptr
	}{
		{"code", "00400000-00402000 r-xp 00000000 fd:00 7 /bin/kms" + clean, [][2]uintptr{{0x400000, 0x402000}}},
		{"constants of a file with a space that was deleted", "1000-2000 r--p 00000000 fd:00 7 /a b (deleted)" + clean, [][2]uintptr{{0x1000, 0x2000}}},
		{"variables that did not change yet", "1000-2000 rw-p 00000000 fd:00 7 /bin/kms" + clean, nil},
		{"constants that a loader wrote", "1000-2000 r--p 00000000 fd:00 7 /bin/kms\nRss: 8 kB\nAnonymous: 4 kB\n", nil},
		{"code with a breakpoint before code without", "1000-2000 r-xp 0 fd:00 7 /k\nAnonymous: 4 kB\n3000-4000 r-xp 0 fd:00 7 /k" + clean, [][2]uintptr{{0x3000, 0x4000}}},
		{"a file that is shared", "1000-2000 r--s 00000000 fd:00 7 /var/lib/kms/db" + clean, nil},
		{"memory that can only be read", "1000-2000 r--p 00000000 00:00 0 " + clean, nil},
		{"the system's", "7ffd1000-7ffd3000 r-xp 00000000 00:00 0 [vdso]" + clean, nil},
		{"without its end", "1000-2000 r--p 00000000 fd:00 7 /bin/kms\nRss: 8 kB\n", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := process.CleanMappings(strings.NewReader(tt.smaps))
			if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
				t.Errorf("cleanMappings(%q) = %v, %v (-want +got):\n%s", tt.smaps, got, err, diff)
			}
		})
	}
	for _, text := range []string{"1000 r--p 0 fd:00 7 /k", "x-2000 r--p 0 fd:00 7 /k", "1000-11112222333344445 r--p 0 fd:00 7 /k"} {
		if got, err := process.CleanMappings(strings.NewReader(text + clean)); err == nil {
			t.Errorf("cleanMappings(%q) = %v, want an error", text, got)
		}
	}
}
