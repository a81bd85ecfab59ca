package configs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// maxFile bounds a configuration file; a larger one is no configuration file.
const maxFile = 4 << 20

// readBound is how long a pipe may take to give the file.
const readBound = 10 * time.Second

// node is a value of a file with the line it is on. val is a string, int64, float64,
// bool, stamp, nil (YAML's null), []*node or *object.
type node struct {
	line int
	val  any
}

// object is a table or mapping, its keys in the order of the file.
type object struct {
	keys []string
	m    map[string]*node
}

// stamp is a TOML date or time; no key of ours takes one.
type stamp string

func newObject() *object { return &object{m: map[string]*node{}} }

func (o *object) set(key string, n *node) {
	if _, ok := o.m[key]; !ok {
		o.keys = append(o.keys, key)
	}
	o.m[key] = n
}

// typeName is how a value's type is called in a message.
func (n *node) typeName() string {
	switch n.val.(type) {
	case string:
		return "a string"
	case int64:
		return "an integer"
	case float64:
		return "a number"
	case bool:
		return "a boolean"
	case stamp:
		return "a date or time without quotes"
	case []*node:
		return "a list"
	case *object:
		return "a table"
	}
	return "null"
}

// show renders a value for a message, short.
func (n *node) show() string {
	s := ""
	switch v := n.val.(type) {
	case string:
		s = strconv.Quote(v)
	case float64:
		if s = fmt.Sprint(v); !strings.ContainsAny(s, ".eIN") {
			s += ".0"
		}
	case int64, bool, stamp:
		s = fmt.Sprint(v)
	case []*node:
		return "a list"
	case *object:
		return "a table"
	default:
		return "null"
	}
	if len(s) > 60 {
		s = s[:57] + "..."
	}
	return s
}

// plain turns a node into ordinary Go values: map[string]any, []any and scalars.
func (n *node) plain() any {
	switch v := n.val.(type) {
	case []*node:
		out := make([]any, len(v))
		for i, x := range v {
			out[i] = x.plain()
		}
		return out
	case *object:
		out := make(map[string]any, len(v.keys))
		for _, k := range v.keys {
			out[k] = v.m[k].plain()
		}
		return out
	case stamp:
		return string(v)
	default:
		return v
	}
}

// readFile reads a whole configuration file, bounded.
func readFile(path, what string) ([]byte, error) {
	// Not to wait for ever where path is a pipe that nobody writes to.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, unreadable(path, err, what)
	}
	defer f.Close()
	_ = f.SetReadDeadline(time.Now().Add(readBound)) // only pipes and the like have one
	if st, err := f.Stat(); err == nil && !st.Mode().IsRegular() && st.IsDir() {
		return nil, unreadable(path, errors.New("it is a directory"), what)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = errors.New("it is a pipe whose writer does not come to an end")
	}
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("it is larger than %d MiB", maxFile>>20)
	}
	if err != nil {
		return nil, unreadable(path, err, what)
	}
	return b, nil
}

func isNotExist(err error) bool   { return errors.Is(err, fs.ErrNotExist) }
func isPermission(err error) bool { return errors.Is(err, fs.ErrPermission) }

// trimPath takes the operation and path out of an error that our message names already.
func trimPath(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}
