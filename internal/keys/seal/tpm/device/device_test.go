package device_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"teekms/internal/keys/seal/tpm/device"
	"teekms/internal/keys/seal/tpm/swtpmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func soon(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// serve answers every connection to a unix socket by f, and returns its path.
func serve(t testing.TB, f func(net.Conn)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { defer conn.Close(); f(conn) })
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
	return path
}

// respond answers every command by what f makes of it.
func respond(f func(command []byte) []byte) func(net.Conn) {
	return func(conn net.Conn) {
		for buf := make([]byte, 4096); ; {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			if _, err := conn.Write(f(buf[:n])); err != nil {
				return
			}
		}
	}
}

// code is an answer that holds nothing but a response code.
func code(rc tpm2.TPMRC) []byte {
	b := []byte{0x80, 0x01, 0, 0, 0, 10}
	return binary.BigEndian.AppendUint32(b, uint32(rc))
}

var command = []byte{0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x7b, 0, 8} // GetRandom

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	regular := filepath.Join(dir, "file")
	if err := os.WriteFile(regular, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(dir, "stale")
	l, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	tests := []struct{ name, path, want string }{
		{"nothing there", filepath.Join(dir, "none"), "there is no TPM at " + dir + "/none (no vTPM in this machine, or the unit's PrivateDevices= hides it)"},
		{"a file", regular, "is neither a device nor a unix socket: name a TPM, such as /dev/tpmrm0"},
		{"a directory", dir, "is neither a device nor a unix socket"},
		{"a device that is no TPM", os.DevNull, "/dev/null is no TPM: name one, such as /dev/tpmrm0"},
		{"a socket that nobody listens on", stale, "nobody listens on " + stale + ": the software TPM is not running"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := device.Open(soon(t, time.Minute), tt.path)
			if err == nil {
				c.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open(%q) = %v, want %q", tt.path, err, tt.want)
			}
		})
	}
	if _, err := device.Open(t.Context(), stale); err == nil || !strings.Contains(err.Error(), "without a deadline") {
		t.Errorf("Open(no deadline) = %v, want a refusal", err)
	}
}

func TestSendRefusesWhatIsNoTPM(t *testing.T) {
	tests := []struct {
		name   string
		answer []byte
		want   string
	}{
		{"text", []byte("HTTP/1.1 400 Bad Request\r\n\r\n"), "what answers is no TPM 2.0"},
		{"a size that is less than the header", []byte{0x80, 1, 0, 0, 0, 9, 0, 0, 0, 0}, "what answers is no TPM 2.0"},
		{"a size that no TPM answers", []byte{0x80, 1, 0, 0, 0x10, 1, 0, 0, 0, 0}, "what answers is no TPM 2.0"},
		{"more than the size says", append(code(0), 0), "what answers is no TPM 2.0"},
		{"an older TPM", []byte{0, 0xc4, 0, 0, 0, 10, 0, 0, 0, 30}, "this is a TPM 1.2: a TPM 2.0 is needed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := device.Open(soon(t, time.Minute), serve(t, respond(func([]byte) []byte { return tt.answer })))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			for range 2 { // what follows on that connection is refused too
				if b, err := c.Send(command); err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("Send() = %x, %v, want %q", b, err, tt.want)
				}
			}
		})
	}
}

func TestSend(t *testing.T) {
	long := append(code(0), bytes.Repeat([]byte{7}, 4086)...)
	binary.BigEndian.PutUint32(long[2:], uint32(len(long)))
	busy := 0
	tests := []struct {
		name string
		f    func(net.Conn)
		want []byte
	}{
		{"the longest answer", respond(func([]byte) []byte { return long }), long},
		{"an answer in pieces", func(conn net.Conn) {
			io.ReadFull(conn, make([]byte, len(command)))
			for _, b := range code(tpm2.TPMRCSuccess) {
				conn.Write([]byte{b})
			}
		}, code(tpm2.TPMRCSuccess)},
		{"a TPM that is busy", respond(func(got []byte) []byte {
			if !bytes.Equal(got, command) {
				return nil
			}
			codes := []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCSuccess}
			busy++
			return code(codes[busy-1])
		}), code(tpm2.TPMRCSuccess)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := device.Open(soon(t, time.Minute), serve(t, tt.f))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if got, err := c.Send(command); err != nil || !bytes.Equal(got, tt.want) {
				t.Errorf("Send() = %x, %v, want %x", got, err, tt.want)
			}
		})
	}
}

// hang reads and never answers.
func hang(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

func TestWaitsEnd(t *testing.T) {
	const patience = 500 * time.Millisecond
	busy := respond(func([]byte) []byte { return code(tpm2.TPMRCRetry) })
	tests := []struct {
		name, path string
		want       []error
	}{
		{"a socket that says nothing", serve(t, hang), []error{device.ErrSilent, context.DeadlineExceeded}},
		{"a socket that begins to answer", serve(t, func(conn net.Conn) { conn.Write(code(0)[:9]); hang(conn) }), []error{device.ErrSilent, context.DeadlineExceeded}},
		{"a TPM that is always busy", serve(t, busy), []error{context.DeadlineExceeded}},
		{"a device that says nothing", terminal(t, nil), []error{device.ErrSilent, context.DeadlineExceeded}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := device.Open(soon(t, patience), tt.path)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			begin := time.Now()
			_, err = c.Send(command)
			for _, want := range tt.want {
				if !errors.Is(err, want) {
					t.Errorf("Send() = %v, want %v", err, want)
				}
			}
			if took := time.Since(begin); took > patience+20*time.Second {
				t.Errorf("Send() took %v, want about %v", took, patience)
			}
			c.Release() // nothing may follow an answer that is outstanding
			if _, err := c.Send(command); err == nil {
				t.Error("Send() after a silence = nil, want an error")
			}
		})
	}
}

func TestClosedByTheTPM(t *testing.T) {
	path := serve(t, func(conn net.Conn) { io.ReadFull(conn, make([]byte, len(command))) })
	c, err := device.Open(soon(t, time.Minute), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Send(command); err == nil || !strings.Contains(err.Error(), "the TPM closed the connection without an answer") {
		t.Errorf("Send() = %v, want that the TPM closed", err)
	}
}

// TestCanceled: the command under way ends, so that what it made is known and
// can be released; the next does not begin.
func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(soon(t, time.Minute))
	path := serve(t, respond(func([]byte) []byte {
		cancel()
		time.Sleep(20 * time.Millisecond)
		return code(0)
	}))
	c, err := device.Open(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Send(command); err != nil {
		t.Errorf("Send(under way) = %v, want nil", err)
	}
	if _, err := c.Send(command); !errors.Is(err, context.Canceled) {
		t.Errorf("Send(next) = %v, want %v", err, context.Canceled)
	}
	c.Release()
	if _, err := c.Send(command); err != nil {
		t.Errorf("Send(release) = %v, want nil", err)
	}
}

// TestCanceledAndSilent: the caller who has left waits for the grace, not for
// the deadline.
func TestCanceledAndSilent(t *testing.T) {
	ctx, cancel := context.WithCancel(soon(t, time.Minute))
	c, err := device.Open(ctx, serve(t, hang))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	time.AfterFunc(20*time.Millisecond, cancel)
	begin := time.Now()
	if _, err := c.Send(command); !errors.Is(err, context.Canceled) {
		t.Errorf("Send() = %v, want %v", err, context.Canceled)
	}
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("Send() took %v, want about 2s", took)
	}
}

// terminal makes a pseudo terminal, which is a character device, pass on what
// is written to it to f and what f writes back. It returns the device's path.
func terminal(t testing.TB, f func(io.ReadWriter)) string {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatalf("opening a pseudo terminal: %v", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/dev/pts/%d", n)
	// Bytes as they are: no echo, no lines, no signals.
	raw := unix.Termios{Cflag: unix.CS8 | unix.CREAD}
	raw.Cc[unix.VMIN] = 1
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &raw); err != nil {
		t.Fatal(err)
	}
	// While one end is open here, closing the other does not hang up.
	held, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	master := os.NewFile(uintptr(fd), "/dev/ptmx")
	var done sync.WaitGroup
	if f != nil {
		done.Go(func() { f(master) })
	}
	t.Cleanup(func() { master.Close(); done.Wait(); held.Close() })
	return path
}

// TestDevice speaks to a real TPM through a character device.
func TestDevice(t *testing.T) {
	p := swtpmtest.Start(t)
	path := terminal(t, func(master io.ReadWriter) {
		conn, err := net.Dial("unix", p.Socket())
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		for buf := make([]byte, 4096); ; {
			n, err := master.Read(buf)
			if err != nil {
				return // the test has ended
			}
			conn.Write(buf[:n])
			if n, err = conn.Read(buf); err != nil {
				t.Error(err)
				return
			}
			time.Sleep(5 * time.Millisecond) // the reader waits, as for a chip
			master.Write(buf[:n])
		}
	})
	for range 2 {
		c, err := device.Open(soon(t, time.Minute), path)
		if err != nil {
			t.Fatal(err)
		}
		if !c.Managed() {
			t.Error("Managed() = false, want true of a device")
		}
		for n := range uint16(20) {
			rsp, err := tpm2.GetRandom{BytesRequested: n + 1}.Execute(c)
			if err != nil || len(rsp.RandomBytes.Buffer) != int(n+1) {
				t.Fatalf("GetRandom(%d) = %v, %v", n+1, rsp, err)
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// FuzzAnswers takes anything for the answer of a TPM.
func FuzzAnswers(f *testing.F) {
	f.Add(code(tpm2.TPMRCSuccess))
	f.Add([]byte{0, 0xc4, 0, 0, 0, 10, 0, 0, 0, 30})
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := serve(t, func(conn net.Conn) {
			io.ReadFull(conn, make([]byte, len(command)))
			conn.Write(b)
		})
		c, err := device.Open(soon(t, time.Second), path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		got, err := c.Send(command)
		if err == nil && (len(got) < 10 || len(got) > 4096 || int(binary.BigEndian.Uint32(got[2:])) != len(got) || !bytes.HasPrefix(b, got)) {
			t.Errorf("Send() = %x of %x, want one whole answer", got, b)
		}
	})
}
