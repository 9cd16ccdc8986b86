// Package process keeps what the memory of this process holds to this process, and
// little in it.
package process

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// NoCoreDumps keeps key material out of core files, and the memory of this
// process from other processes of its user.
func NoCoreDumps() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbidding core dumps: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("making the process not dumpable: %w", err)
	}
	return nil
}
