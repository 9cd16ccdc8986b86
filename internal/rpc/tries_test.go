package rpc_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"teekms/internal/rpc"
)

// guess has a peer make a wrong try, and tells whether it was looked at.
func guess(tries *rpc.Tries, peer string) bool {
	if !tries.Allow(peer, time.Now()) {
		return false
	}
	tries.Wrong(peer, time.Now())
	return true
}

func ipv4(i int) string {
	return fmt.Sprintf("10.%d.%d.%d:%d", i>>16&255, i>>8&255, i&255, 1024+i%60000)
}

// TestGuessesAreBounded counts what is looked at of many peers, which stay or are
// new at every try, in every second that begins with one.
func TestGuessesAreBounded(t *testing.T) {
	for _, tt := range []struct {
		name string
		peer func(i int) string
		want int // in three minutes
	}{
		// Each has the third place until it has sent three.
		{"one", func(int) string { return ipv4(1) }, 2*180 + 1},
		{"two", func(i int) string { return ipv4(i % 2) }, 2*180 + 3},
		{"a thousand", func(i int) string { return ipv4(i % 1000) }, 3 * 180},
		{"always new", ipv4, 3 * 180},
		{"addresses that are none", func(i int) string { return fmt.Sprint("peer", i) }, 2*180 + 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var tries rpc.Tries
				var at []time.Time
				for i := range 3 * 60 * 20 {
					if guess(&tries, tt.peer(i)) {
						at = append(at, time.Now())
					}
					time.Sleep(50 * time.Millisecond)
				}
				for i := range at {
					if i >= 3 && at[i].Sub(at[i-3]) < time.Second {
						t.Fatalf("four tries within %v were looked at", at[i].Sub(at[i-3]))
					}
				}
				if len(at) != tt.want {
					t.Errorf("%d tries were looked at in three minutes, want %d", len(at), tt.want)
				}
			})
		})
	}
}

// TestGuessingKeepsNobodyElseOut has peers guess twenty times a second each,
// while somebody who knows the secret comes twice a second: one peer is in the way
// for the second in which it becomes a guesser.
func TestGuessingKeepsNobodyElseOut(t *testing.T) {
	for _, tt := range []struct {
		name    string
		hostile []string
		most    int // refusals of the other one, of 600 in five minutes
	}{
		{"one", []string{"192.0.2.1:1"}, 2},
		{"one with many ports", []string{"192.0.2.1:1", "192.0.2.1:2", "192.0.2.1:3", "192.0.2.1:4"}, 2},
		{"a network of one host", []string{"[2001:db8::1]:1", "[2001:db8::2]:1", "[2001:db8::ffff:1:2]:1", "[2001:db8::3%eth0]:1"}, 2},
		{"one by two families", []string{"192.0.2.1:1", "[::ffff:192.0.2.1]:1", "[::ffff:192.0.2.1]:2"}, 2},
		// Eight of them have the third place for three seconds of each minute.
		{"ten", []string{ipv4(1), ipv4(2), ipv4(3), ipv4(4), ipv4(5), ipv4(6), ipv4(7), ipv4(8), ipv4(9), ipv4(10)}, 5 * 8 * 3 * 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var tries rpc.Tries
				refused := 0
				for i := range 5 * 60 * 20 {
					for _, peer := range tt.hostile {
						guess(&tries, peer)
					}
					if i%10 == 9 && !tries.Allow("198.51.100.7:50000", time.Now()) {
						refused++
					}
					time.Sleep(50 * time.Millisecond)
				}
				if refused > tt.most {
					t.Errorf("who knows the secret was refused %d times, want at most %d", refused, tt.most)
				}
			})
		})
	}
}

// TestPeersAreRemembered fills the memory at the greatest rate: the first peer is
// not forgotten before its minute is over, and is new then.
func TestPeersAreRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries rpc.Tries
		const first = "203.0.113.1:1"
		for range 3 {
			guess(&tries, first)
		}
		for i := range 5800 {
			guess(&tries, ipv4(i)) // always new
			time.Sleep(10 * time.Millisecond)
		}
		for n, want := range []bool{false, true} {
			time.Sleep(time.Second) // the second of the last tries is over
			guess(&tries, ipv4(1<<20+2*n))
			guess(&tries, ipv4(1<<20+2*n+1))
			if got := tries.Allow(first, time.Now()); got != want {
				t.Errorf("after %d seconds the first peer is looked at as a new one: %t, want %t", 59+n, got, want)
			}
			if !tries.Allow("203.0.113.2:1", time.Now()) {
				t.Error("a new peer is not looked at")
			}
		}
	})
}

// TestRightTriesPushNothingOut has somebody be right a thousand times, in tries that
// take long, beside one who guesses: every guess is remembered.
func TestRightTriesPushNothingOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries rpc.Tries
		const hostile, other = "192.0.2.1:1", "198.51.100.7:1"
		rightly := func() {
			for range 1000 {
				if !tries.Allow(other, time.Now()) {
					t.Fatal("who is right is not looked at")
				}
				tries.Wrong(other, time.Now())()
			}
		}
		for range 2 {
			guess(&tries, hostile)
			rightly()
		}
		right := tries.Wrong(other, time.Now())
		if tries.Allow(hostile, time.Now()) {
			t.Error("a fourth try of this second is looked at, want three with the one under way")
		}
		right()
		for i, want := range []bool{true, false} {
			if got := guess(&tries, hostile); got != want {
				t.Errorf("guess %d of this second is looked at: %t, want %t", 3+i, got, want)
			}
		}
		time.Sleep(time.Second)
		for i, want := range []bool{true, true, false} {
			rightly()
			if got := guess(&tries, hostile); got != want {
				t.Errorf("guess %d of who has guessed three times is looked at: %t, want %t", i, got, want)
			}
		}
		right = tries.Wrong(other, time.Now())
		tries.Wrong(hostile, time.Now())
		right() // not the last one any more
		if tries.Allow(other, time.Now()) {
			t.Error("a fourth try is looked at, want three wrong ones counted")
		}
	})
}

// TestPeers compares addresses.
func TestPeers(t *testing.T) {
	tests := []struct {
		name, a, b string
		same       bool
	}{
		{"ports", "192.0.2.1:1", "192.0.2.1:2", true},
		{"neighbors", "192.0.2.1:1", "192.0.2.2:1", false},
		{"one /64", "[2001:db8:0:1::1]:1", "[2001:db8:0:1:ffff:ffff:ffff:ffff]:1", true},
		{"two /64", "[2001:db8:0:1::1]:1", "[2001:db8:0:2::1]:1", false},
		{"IPv4 in IPv6", "[::ffff:192.0.2.1]:1", "192.0.2.1:1", true},
		{"two of IPv4 in IPv6", "[::ffff:192.0.2.1]:1", "[::ffff:192.0.2.2]:1", false},
		{"zones", "[fe80::1%eth0]:1", "[fe80::2%eth1]:1", true},
		{"without address", "@", "pipe", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			now := time.Unix(1_700_000_000, 0)
			var tries rpc.Tries
			for range 3 {
				tries.Wrong(tt.a, now.Add(-10*time.Second))
			}
			for range 2 {
				tries.Wrong("198.51.100.7:1", now)
			}
			if same := !tries.Allow(tt.b, now); same != tt.same {
				t.Errorf("%s and %s are one peer: %t, want %t", tt.a, tt.b, same, tt.same)
			}
		})
	}
}

func TestTryThatWasRightIsTakenBack(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	var tries rpc.Tries
	for range 1000 {
		tries.Wrong("192.0.2.1:1", now)()
	}
	tries.Wrong("192.0.2.1:1", now)
	if !tries.Allow("192.0.2.1:1", now) {
		t.Error("Allow after one wrong try = false, want those that were right not to count")
	}
}
