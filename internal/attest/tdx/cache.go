package tdx

import "sync"

// boundedMap is a map for several goroutines that forgets an arbitrary entry
// where a new one would be one too many. The zero value is not usable.
type boundedMap[K comparable, V any] struct {
	limit int
	mu    sync.RWMutex
	m     map[K]V // guarded by mu
}

func newBoundedMap[K comparable, V any](limit int) *boundedMap[K, V] {
	return &boundedMap[K, V]{limit: limit, m: make(map[K]V)}
}

func (b *boundedMap[K, V]) load(k K) (V, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	v, ok := b.m[k]
	return v, ok
}

// loadBytes is load without making a string of the key.
func loadBytes[V any](b *boundedMap[string, V], k []byte) (V, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	v, ok := b.m[string(k)]
	return v, ok
}

func (b *boundedMap[K, V]) store(k K, v V) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.m[k]; !ok && len(b.m) >= b.limit {
		for victim := range b.m {
			delete(b.m, victim)
			break
		}
	}
	b.m[k] = v
}
