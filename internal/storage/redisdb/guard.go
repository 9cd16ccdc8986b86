package redisdb

import (
	"errors"
	"net"
)

// What a server may announce. The longest answers are rows, of 1 MiB each.
const (
	maxReplyLine  = 64 << 10
	maxReplyBulk  = 64 << 20
	maxReplyItems = 1 << 20
)

// errReply says that the server does not answer as Redis does.
var errReply = errors.New("the server's answer is not one of Redis")

// guarded checks the lengths in the server's answers (RESP 2) before the client
// library sees them: that keeps a line without an end in memory, allocates
// whatever a length says, and panics where it cannot.
type guarded struct {
	net.Conn
	// skip are the bytes of a bulk string, and of its line end, to come.
	skip int
	// kind is the first byte of the current line, 0 before it; length what was
	// read of it, number its digits.
	kind           byte
	length, number int
}

// Read reads what was checked.
func (g *guarded) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	if checkErr := g.check(p[:n]); checkErr != nil {
		return 0, checkErr
	}
	return n, err
}

func (g *guarded) check(b []byte) error {
	for len(b) > 0 {
		if g.skip > 0 {
			n := min(g.skip, len(b))
			g.skip, b = g.skip-n, b[n:]
			continue
		}
		if err := g.next(b[0]); err != nil {
			return err
		}
		b = b[1:]
	}
	return nil
}

// next takes a byte of a line.
func (g *guarded) next(c byte) error {
	counts := g.kind == '$' || g.kind == '*'
	switch {
	case g.kind == 0:
		g.kind, g.length, g.number = c, 0, 0
		return nil
	case c == '\n':
		if g.kind == '$' && g.number >= 0 {
			g.skip = g.number + 2
		}
		g.kind = 0
		return nil
	case counts && c >= '0' && c <= '9' && g.number >= 0:
		g.number = 10*g.number + int(c-'0')
	case counts && c == '-' && g.length == 0:
		g.number = -1
	}
	g.length++
	if g.length > maxReplyLine || g.kind == '$' && g.number > maxReplyBulk || g.kind == '*' && g.number > maxReplyItems {
		return errReply
	}
	return nil
}
