package redisdb

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"sort"
	"strings"
	"sync"

	"teekms/internal/registry"
	"teekms/internal/storage"
)

const (
	// maxLeaf and maxInner are how many rules and children a node holds at most.
	maxLeaf  = 32
	maxInner = 64
	// maxLevel bounds the height of the tree.
	maxLevel = 16
	// Bounds of a rule's texts, in bytes: those of every kind of database.
	maxKind    = 32
	maxSubject = 64
	maxValue   = 255
)

// nodeID is random and never used twice: it stands for the one content that was
// ever written under it.
type nodeID [16]byte

func newNodeID() (id nodeID) {
	_, _ = rand.Read(id[:]) // crypto/rand never fails.
	return id
}

// node is a node of the tree of rules: a leaf, of level 0, has entries, any other
// has children of the level below. Both are in order and at least one.
type node struct {
	level    uint8
	entries  []registry.Entry
	children []child
}

// child leads to a node that holds no rule before low.
type child struct {
	low registry.Rule
	id  nodeID
}

// compare orders rules by kind, subject and value, bytewise.
func compare(a, b registry.Rule) int {
	return cmp.Or(strings.Compare(string(a.Kind), string(b.Kind)), strings.Compare(a.Subject, b.Subject), strings.Compare(a.Value, b.Value))
}

// towards returns the index of the child that a rule is below.
func (n *node) towards(r registry.Rule) int {
	i := sort.Search(len(n.children), func(i int) bool { return compare(n.children[i].low, r) > 0 })
	return max(i-1, 0)
}

// entry returns the rule of a leaf.
func (n *node) entry(r registry.Rule) (registry.Entry, bool) {
	i := sort.Search(len(n.entries), func(i int) bool { return compare(n.entries[i].Rule, r) >= 0 })
	if i < len(n.entries) && n.entries[i].Rule == r {
		return n.entries[i], true
	}
	return registry.Entry{}, false
}

// marshal encodes a node:
//
//	level (1) | count (2) | entries: rule | revision (8), or children: rule | id (16)
//
// where a rule is its three texts, each behind its length (2).
func (n *node) marshal() []byte {
	b := []byte{n.level}
	b = binary.BigEndian.AppendUint16(b, uint16(len(n.entries)+len(n.children)))
	for _, e := range n.entries {
		b = appendRule(b, e.Rule)
		b = binary.BigEndian.AppendUint64(b, e.Revision)
	}
	for _, c := range n.children {
		b = appendRule(b, c.low)
		b = append(b, c.id[:]...)
	}
	return b
}

func appendRule(b []byte, r registry.Rule) []byte {
	b = appendText16(b, string(r.Kind))
	b = appendText16(b, r.Subject)
	return appendText16(b, r.Value)
}

func (c *cursor) rule() registry.Rule {
	return registry.Rule{Kind: registry.Kind(c.text16()), Subject: c.text16(), Value: c.text16()}
}

func parseNode(b []byte) (*node, error) {
	c := cursor{rest: b}
	n := &node{level: c.uint8()}
	count := int(c.uint16())
	var last registry.Rule
	ordered := true
	for i := 0; i < count && !c.failed; i++ {
		r := c.rule()
		ordered = ordered && (i == 0 || compare(last, r) < 0)
		last = r
		if n.level == 0 {
			n.entries = append(n.entries, registry.Entry{Rule: r, Revision: c.uint64()})
			continue
		}
		next := child{low: r}
		copy(next.id[:], c.bytes(len(next.id)))
		n.children = append(n.children, next)
	}
	if err := c.done(); err != nil || count == 0 || n.level > maxLevel || !ordered {
		return nil, fmt.Errorf("%w: node: %w", storage.ErrIntegrity, errEncoding)
	}
	return n, nil
}

// sealNode encrypts a node under its id.
func (db *DB) sealNode(id nodeID, n *node) string {
	return db.box.seal(n.marshal(), string(id[:]))
}

func (db *DB) openNode(value any, id nodeID) (*node, error) {
	sealed, ok := value.(string)
	if !ok {
		return nil, fmt.Errorf("a node of the rules: %w", errMoved)
	}
	plain, err := db.box.open(sealed, string(id[:]))
	if err != nil {
		return nil, fmt.Errorf("a node of the rules: %w", err)
	}
	return parseNode(plain)
}

// Bounds of the cache in nodes; each is held at most twice.
const (
	cachedLeaves = 512
	cachedInner  = 2048
)

// nodeCache remembers nodes, which never change.
type nodeCache struct {
	mu sync.Mutex // guards both
	// leaves and inner are apart, because there are many leaves and few others.
	leaves, inner generations
}

// generations is a cache of bounded size that forgets what was not used for
// about as many additions as it holds.
type generations struct {
	young, old map[nodeID]*node
	size       int
}

func newNodeCache() *nodeCache {
	return &nodeCache{leaves: generations{size: cachedLeaves}, inner: generations{size: cachedInner}}
}

func (c *nodeCache) get(id nodeID) *node {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := c.inner.get(id); n != nil {
		return n
	}
	return c.leaves.get(id)
}

func (c *nodeCache) put(id nodeID, n *node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n.level == 0 {
		c.leaves.put(id, n)
		return
	}
	c.inner.put(id, n)
}

func (g *generations) get(id nodeID) *node {
	if n, ok := g.young[id]; ok {
		return n
	}
	n, ok := g.old[id]
	if ok {
		g.put(id, n)
	}
	return n
}

func (g *generations) put(id nodeID, n *node) {
	if g.young == nil || len(g.young) >= g.size {
		g.old, g.young = g.young, make(map[nodeID]*node)
	}
	g.young[id] = n
}
