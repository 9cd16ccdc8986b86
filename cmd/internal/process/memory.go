package process

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ForgetStart takes out of the memory of this process the pages of its program that
// were read so far: most of the code that starts a program is not run again. How much
// is there of it is chance otherwise, because the system maps whole neighborhoods of
// what is read, as large as they happen to lie in its page cache. What is needed again
// is mapped again, out of that cache.
func ForgetStart() error {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return fmt.Errorf("looking at the memory of this process: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	clean, err := cleanMappings(f)
	if err != nil {
		return fmt.Errorf("looking at the memory of this process: %w", err)
	}
	for _, m := range clean {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("unmapping pages of the program: %w", errno)
		}
	}
	return nil
}

// mapping is a range of addresses.
type mapping struct{ start, end uintptr }

// cleanMappings returns the mappings of files that can only be read and of which no
// page was changed, so that all of it is in the file. A loader or a debugger may have
// written into what can only be read now. smaps is of the form of proc_pid_smaps(5):
//
//	00400000-01668000 r-xp 00000000 fd:00 264212 /usr/local/bin/dstack-kms
//	Rss:               13664 kB
//	Anonymous:             0 kB
func cleanMappings(smaps io.Reader) ([]mapping, error) {
	var clean []mapping
	var current mapping
	readOnly := false
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		w := strings.Fields(lines.Text())
		switch {
		case len(w) < 2:
		case w[0] == "Anonymous:":
			if readOnly && w[1] == "0" {
				clean = append(clean, current)
			}
			readOnly = false
		case len(w) >= 5 && !strings.HasSuffix(w[0], ":"):
			var err error
			if current, err = parseRange(w[0]); err != nil {
				return nil, err
			}
			// Private, and of an inode: [vdso] and the like have none.
			readOnly = (w[1] == "r--p" || w[1] == "r-xp") && w[4] != "0"
		}
	}
	return clean, lines.Err()
}

// parseRange reads START-END, in hexadecimal.
func parseRange(text string) (m mapping, err error) {
	from, to, _ := strings.Cut(text, "-")
	start, err := strconv.ParseUint(from, 16, strconv.IntSize)
	if err != nil {
		return m, err
	}
	end, err := strconv.ParseUint(to, 16, strconv.IntSize)
	return mapping{uintptr(start), uintptr(end)}, err
}
