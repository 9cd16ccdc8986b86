package device

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// file is a device file. A TPM device that was opened without blocking takes a
// command and returns at once; reading it before the answer is there returns
// nothing, as at the end of a file, so Read waits for it first.
type file struct{ *os.File }

func openFile(path string) (stream, error) {
	// NOCTTY: a path to a terminal must not become ours.
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err //nolint:wrapcheck // it names the path
	}
	return file{f}, nil
}

func (f file) Read(b []byte) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err //nolint:wrapcheck // it names the path
	}
	var n int
	var failed error
	err = raw.Read(func(fd uintptr) (done bool) {
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if m, err := unix.Poll(ready, 0); err != nil || m == 0 {
			return false // waits until it is ready, or the deadline
		}
		n, failed = unix.Read(int(fd), b)
		return failed != unix.EAGAIN && failed != unix.EINTR
	})
	switch {
	case err != nil:
		return 0, err //nolint:wrapcheck // it names the path
	case failed != nil:
		return 0, fmt.Errorf("reading %s: %w", f.Name(), failed)
	case n == 0 && len(b) != 0:
		return 0, io.EOF
	}
	return n, nil
}
