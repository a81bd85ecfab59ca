package logx

import "sync"

// Once reports each key true once, and remembers at most 1,024 keys: for conditions
// that others cause at will, such as garbage on a socket, of which one line is enough.
type Once struct {
	mu   sync.Mutex
	seen map[string]struct{}
}

// First reports whether key is new.
func (o *Once) First(key string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.seen[key]; ok || len(o.seen) >= 1024 {
		return false
	}
	if o.seen == nil {
		o.seen = map[string]struct{}{}
	}
	o.seen[key] = struct{}{}
	return true
}
