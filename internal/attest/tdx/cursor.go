package tdx

import (
	"encoding/binary"
	"fmt"
)

// cursor reads little-endian fields off a slice. The first field that does not
// fit sets err; from then on every read gives nothing, so that a caller may
// read a whole structure and look at err once.
type cursor struct {
	b   []byte
	off int
	err error
}

// take returns the next n bytes without copying them.
func (c *cursor) take(n int, what string) []byte {
	if c.err != nil {
		return nil
	}
	if left := len(c.b) - c.off; n > left {
		c.err = fmt.Errorf("%s of %d bytes, %d left", what, n, left)
		return nil
	}
	p := c.b[c.off : c.off+n : c.off+n]
	c.off += n
	return p
}

func (c *cursor) uint16(what string) uint16 {
	if p := c.take(2, what); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

func (c *cursor) uint32(what string) uint32 {
	if p := c.take(4, what); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

// sized32 reads a 32-bit size and returns a cursor over that many bytes.
func (c *cursor) sized32(what string) cursor {
	n := c.uint32("size of " + what)
	// Compared before it becomes an int: an int may have 32 bits.
	if c.err == nil && uint64(n) > uint64(len(c.b)-c.off) {
		c.err = fmt.Errorf("%s of %d bytes, %d left", what, n, len(c.b)-c.off)
	}
	if c.err != nil {
		return cursor{err: c.err}
	}
	return cursor{b: c.take(int(n), what)}
}

// rest returns what has not been read.
func (c *cursor) rest() []byte { return c.b[c.off:] }
