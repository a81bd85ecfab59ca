package configs

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// file collects the faults of one file.
type file struct {
	name   string
	prefix string // of this file's keys in the table of what is not built
	faults Faults
}

// table pulls typed values out of one table. Asking for a key makes it a known one;
// done reports those that nobody asked for. A table that is not in the file reads as
// an empty one, so that defaults need no special case.
type table struct {
	f       *file
	key     string // dotted, "" at the top
	line    int
	obj     *object
	present bool
	known   []string
	bad     map[string]bool // keys with a fault
}

// root is the table that a file is.
func (f *file) root(n *node) (*table, error) {
	o, ok := n.val.(*object)
	if !ok {
		return nil, Faults{{File: f.name, Line: max(n.line, 1), Msg: "the file must be a table of keys and values, not " + n.typeName()}}.asError()
	}
	return &table{f: f, line: 1, obj: o, present: true, bad: map[string]bool{}}, nil
}

func (t *table) path(key string) string {
	switch {
	case key == "":
		return t.key
	case t.key == "":
		return key
	}
	return t.key + "." + key
}

// fault reports that the value of key is wrong; at the table's line when it is missing.
func (t *table) fault(key, format string, args ...any) {
	line := t.line
	if n := t.obj.m[key]; n != nil {
		line = n.line
	}
	t.faultAt(line, key, format, args...)
}

func (t *table) faultAt(line int, key, format string, args ...any) {
	t.bad[key] = true
	t.f.faults = append(t.f.faults, Fault{File: t.f.name, Line: line, Key: t.path(key), Msg: fmt.Sprintf(format, args...)})
}

// get is the value of key, nil when absent. It makes key a known one.
func (t *table) get(key string) *node {
	if !slices.Contains(t.known, key) {
		t.known = append(t.known, key)
	}
	return t.obj.m[key]
}

func (t *table) has(key string) bool { return t.get(key) != nil }

// want reports a value of the wrong type.
func (t *table) want(key string, n *node, what string) {
	if n.show() == n.typeName() {
		t.faultAt(n.line, key, "is %s; give %s", n.typeName(), what)
		return
	}
	t.faultAt(n.line, key, "%s is %s; give %s", n.show(), n.typeName(), what)
}

func (t *table) str(key, def string) string {
	n := t.get(key)
	if n == nil {
		return def
	}
	s, ok := n.val.(string)
	if !ok {
		t.want(key, n, "a string")
		return def
	}
	if strings.ContainsRune(s, 0) {
		t.fault(key, "has a NUL byte in it")
		return def
	}
	return s
}

func (t *table) oneOf(key, def string, allowed ...string) string {
	if n := t.get(key); n != nil {
		if _, ok := n.val.(string); !ok {
			t.want(key, n, "one of "+strings.Join(allowed, ", "))
			return def
		}
	}
	s := t.str(key, def)
	if t.has(key) && !t.bad[key] && !slices.Contains(allowed, s) {
		t.fault(key, "%q is unknown; %s", s, didYouMean(s, allowed))
		return def
	}
	return s
}

func (t *table) boolean(key string, def bool) bool {
	n := t.get(key)
	if n == nil {
		return def
	}
	b, ok := n.val.(bool)
	if !ok {
		t.want(key, n, "true or false")
		return def
	}
	return b
}

func (t *table) integer(key string, def, lo, hi int64) int64 {
	n := t.get(key)
	if n == nil {
		return def
	}
	v, ok := n.val.(int64)
	if !ok {
		t.want(key, n, "an integer"+between(lo, hi))
		return def
	}
	if v < lo || v > hi {
		t.fault(key, "%d is out of bounds; give an integer%s", v, between(lo, hi))
		return def
	}
	return v
}

func between(lo, hi int64) string {
	switch {
	case lo == math.MinInt64 && hi == math.MaxInt64:
		return ""
	case hi == math.MaxInt64:
		return fmt.Sprintf(" of %d or more", lo)
	}
	return fmt.Sprintf(" from %d to %d", lo, hi)
}

// number takes an integer or a finite float.
func (t *table) number(key string, def, lo, hi float64) float64 {
	n := t.get(key)
	if n == nil {
		return def
	}
	v, ok := toFloat(n.val)
	switch {
	case !ok:
		t.want(key, n, "a number")
		return def
	case math.IsNaN(v) || math.IsInf(v, 0):
		t.fault(key, "%v is not a finite number", v)
		return def
	case v < lo || v > hi:
		t.fault(key, "%v is out of bounds; give a number%s", n.val, betweenFloats(lo, hi))
		return def
	}
	return v
}

func betweenFloats(lo, hi float64) string {
	if hi >= math.MaxFloat64 {
		return fmt.Sprintf(" of %v or more", lo)
	}
	return fmt.Sprintf(" from %v to %v", lo, hi)
}

func toFloat(v any) (float64, bool) {
	switch v := v.(type) {
	case int64:
		return float64(v), true
	case float64:
		return v, true
	}
	return 0, false
}

// duration takes "10m", "1h30m", "2d".
func (t *table) duration(key string, def, lo, hi time.Duration) time.Duration {
	n := t.get(key)
	if n == nil {
		return def
	}
	s, ok := n.val.(string)
	if !ok {
		t.want(key, n, `a duration in quotes with its unit, such as "10m", "1h30m" or "2d"`)
		return def
	}
	d, err := ParseDuration(s)
	switch {
	case err != nil:
		t.fault(key, "%s", err)
	case d < lo || d > hi:
		t.fault(key, "%q is out of bounds; give a duration from %s to %s", s, showDuration(lo), showDuration(hi))
	default:
		return d
	}
	return def
}

// size takes "20GiB".
func (t *table) size(key string, def int64) int64 {
	n := t.get(key)
	if n == nil {
		return def
	}
	s, ok := n.val.(string)
	if !ok {
		t.want(key, n, `a size in quotes with its unit, such as "20GiB"`)
		return def
	}
	v, err := ParseSize(s)
	if err != nil {
		t.fault(key, "%s", err)
		return def
	}
	return v
}

// strings takes a list of strings; at least one when present and min is 1.
func (t *table) strings(key string, min int) []string {
	n := t.get(key)
	if n == nil {
		return nil
	}
	list, ok := n.val.([]*node)
	if !ok {
		t.want(key, n, `a list of strings, such as ["a", "b"]`)
		return nil
	}
	if len(list) < min {
		t.fault(key, "the list is empty; give at least %d", min)
	}
	var out []string
	for i, e := range list {
		s, ok := e.val.(string)
		switch {
		case !ok:
			t.faultAt(e.line, key, "element %d, %s, is %s; give a string", i+1, e.show(), e.typeName())
		case strings.ContainsRune(s, 0):
			t.faultAt(e.line, key, "element %d has a NUL byte in it", i+1)
		default:
			out = append(out, s)
		}
	}
	return out
}

// pairs takes a table of strings, its keys checked by ok, in the order of the file.
func (t *table) pairs(key, what string, ok func(name string) bool) (names, values []string) {
	n := t.get(key)
	if n == nil {
		return nil, nil
	}
	o, isTable := n.val.(*object)
	if !isTable {
		t.want(key, n, what)
		return nil, nil
	}
	for _, k := range o.keys {
		v := o.m[k]
		s, isString := v.val.(string)
		switch {
		case !ok(k):
			t.faultAt(v.line, key+"."+k, "%q is not a name that can be used here; give letters, digits and _", k)
		case !isString:
			t.faultAt(v.line, key+"."+k, "%s is %s; put it in quotes", v.show(), v.typeName())
		case strings.ContainsRune(s, 0):
			t.faultAt(v.line, key+"."+k, "has a NUL byte in it")
		default:
			names, values = append(names, k), append(values, s)
		}
	}
	return names, values
}

// table is the sub-table of key.
func (t *table) table(key string) *table {
	sub := &table{f: t.f, key: t.path(key), line: t.line, obj: newObject(), bad: map[string]bool{}}
	n := t.get(key)
	if n == nil {
		return sub
	}
	sub.line, sub.present = n.line, true
	o, ok := n.val.(*object)
	if !ok {
		t.want(key, n, "a table")
		return sub
	}
	sub.obj = o
	return sub
}

// tables is an array of tables.
func (t *table) tables(key string) []*table {
	n := t.get(key)
	if n == nil {
		return nil
	}
	list, ok := n.val.([]*node)
	if !ok {
		t.want(key, n, fmt.Sprintf("tables, each begun by [[%s]]", t.path(key)))
		return nil
	}
	var out []*table
	for _, e := range list {
		o, ok := e.val.(*object)
		if !ok {
			t.want(key, e, fmt.Sprintf("tables, each begun by [[%s]]", t.path(key)))
			continue
		}
		out = append(out, &table{f: t.f, key: t.path(key), line: e.line, obj: o, present: true, bad: map[string]bool{}})
	}
	return out
}

// version checks the version key that every file of ours begins with.
func (t *table) version() {
	n := t.get("version")
	if n == nil {
		t.fault("version", "missing; write version = 1")
		return
	}
	if v, ok := n.val.(int64); !ok {
		t.want("version", n, "the integer 1")
	} else if v != 1 {
		t.fault("version", "%d is unknown to this launcher; it reads version 1", v)
	}
}

// done reports unknown keys, and known ones whose value is of a part not built yet.
func (t *table) done() {
	for _, k := range t.obj.keys {
		n := t.obj.m[k]
		if !slices.Contains(t.known, k) {
			t.faultAt(n.line, k, "unknown key; %s", didYouMean(k, t.known))
			continue
		}
		if !t.bad[k] && notBuilt(t.f.prefix+t.path(k), n) {
			t.f.faults = append(t.f.faults, Fault{File: t.f.name, Line: n.line, Key: t.path(k), Msg: n.show() + ": not in this version", Unbuilt: true})
		}
	}
}
