package redisdb

import (
	"encoding/binary"
	"errors"
)

// errEncoding says that bytes which authenticated do not parse. It is always
// wrapped with storage.ErrIntegrity.
var errEncoding = errors.New("malformed record")

// cursor reads what the append functions of encoding/binary wrote, big endian.
// After the first shortage every read gives zeros and failed is set.
type cursor struct {
	rest   []byte
	failed bool
}

func (c *cursor) bytes(n int) []byte {
	if c.failed || n < 0 || n > len(c.rest) {
		c.failed = true
		return nil
	}
	b := c.rest[:n]
	c.rest = c.rest[n:]
	return b
}

func (c *cursor) uint8() uint8 {
	if b := c.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) uint16() uint16 {
	if b := c.bytes(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) uint32() uint32 {
	if b := c.bytes(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) uint64() uint64 {
	if b := c.bytes(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// text16 reads a string behind its length in 16 bits.
func (c *cursor) text16() string { return string(c.bytes(int(c.uint16()))) }

// done says whether everything was read, and nothing missing.
func (c *cursor) done() error {
	if c.failed || len(c.rest) != 0 {
		return errEncoding
	}
	return nil
}

func appendText16(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}
