package rpc

import (
	"net/netip"
	"time"
)

// Bounds of guessing.
const (
	// maxTries is how many wrong tries are looked at in any one second, whoever
	// sends them.
	maxTries = 3
	// maxGuesser is how many of them may be of guessers: peers that have sent as
	// many as maxTries within the memory.
	maxGuesser = maxTries - 1
	// memory is how long a wrong try of a peer is remembered.
	memory = time.Minute
	// maxRemembered is how many there can be in that time.
	maxRemembered = maxTries * int(memory/time.Second)
)

// Tries says which tries of a secret are looked at: at most three wrong ones in
// any one second, which bounds guessing whatever the number of peers. The last of
// the three is not for peers that have sent three wrong ones within a minute, so
// that a few who guess all the time do not keep out who knows the secret. A peer is
// an IPv4 address, or a /64 of IPv6.
//
// The zero value is ready. Its methods must not be called at once.
type Tries struct {
	// wrong is a ring of the last wrong tries; next is where the oldest stands.
	wrong [maxRemembered]try
	next  int
}

// try is a wrong one; the zero value is none.
type try struct {
	at   time.Time
	peer netip.Prefix
}

// Allow tells whether a try that peer, an address with a port, makes now is looked
// at.
func (t *Tries) Allow(peer string, now time.Time) bool {
	from := peerOf(peer)
	recent, ofPeer := 0, 0
	for i := range t.wrong {
		w := &t.wrong[i]
		age := now.Sub(w.at)
		if w.at.IsZero() || age >= memory {
			continue
		}
		if age < time.Second {
			recent++
		}
		if w.peer == from {
			ofPeer++
		}
	}
	return recent < maxGuesser || recent < maxTries && ofPeer < maxTries
}

// Wrong notes that a try is wrong. What it returns takes that back: a try that
// takes long is noted before it is known to be right.
func (t *Tries) Wrong(peer string, now time.Time) (right func()) {
	place := t.next
	t.next = (place + 1) % len(t.wrong)
	t.wrong[place] = try{at: now, peer: peerOf(peer)}
	return func() {
		t.wrong[place] = try{}
		if (place+1)%len(t.wrong) == t.next { // else those who are right would push out the wrong
			t.next = place
		}
	}
}

// ipv6Peer is the length of the prefix that one host may have to itself.
const ipv6Peer = 64

// peerOf is the peer of an address with a port. All that have none are one.
func peerOf(address string) netip.Prefix {
	port, err := netip.ParseAddrPort(address)
	if err != nil {
		return netip.Prefix{}
	}
	ip := port.Addr().Unmap()
	bits := ip.BitLen()
	if ip.Is6() {
		bits = ipv6Peer
	}
	p, _ := ip.WithZone("").Prefix(bits) // it has as many
	return p
}
