package configs

import (
	"bytes"
	"fmt"
	"math"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"launcher/wire"
)

// ParseWandb checks the text of a W&B sweep file (YAML). Keys that only say where W&B
// shows the results (project, entity, description) are read and have no effect here;
// concurrent and seed are ours.
func ParseWandb(name, abs string, text []byte) (*Job, error) {
	root, faults := parseYAML(name, text)
	if faults != nil {
		return nil, faults.asError()
	}
	f, dir := &file{name: name, prefix: "sweep."}, filepath.Dir(abs)
	t, err := f.root(root)
	if err != nil {
		return nil, err
	}
	j := &Job{Path: abs, Kind: wire.KindSweep, Dir: dir, Resources: wire.Resources{CPU: wire.Unit}}
	j.Name = notInNameRE.ReplaceAllString(t.str("name", strings.TrimSuffix(filepath.Base(abs), filepath.Ext(abs))), "-")
	j.Name = strings.Trim(j.Name[:min(len(j.Name), 63)], "._-")
	if j.Name == "" {
		j.Name = "sweep"
	}
	for _, k := range []string{"project", "entity", "description"} {
		t.str(k, "")
	}
	j.Sweep = readSweep(t)
	j.sweepCommand(t, t)
	if err := f.faults.asError(); err != nil {
		return nil, err
	}
	return j, nil
}

// maxYAML bounds a W&B file: the parser's time grows with the square of its size where
// the text is hostile.
const maxYAML = 64 << 10

// parseYAML reads the one document of a YAML file into a tree.
func parseYAML(file string, text []byte) (root *node, faults Faults) {
	bad := func(line int, format string, args ...any) (*node, Faults) {
		return nil, Faults{{File: file, Line: max(line, 1), Msg: "not YAML: " + fmt.Sprintf(format, args...)}}
	}
	defer func() {
		// The parser panics on some malformed input.
		if r := recover(); r != nil {
			root, faults = bad(1, "malformed")
		}
	}()
	if len(text) > maxYAML {
		return bad(1, "it is larger than %d KiB; write such a sweep as a TOML job file", maxYAML>>10)
	}
	if i := strings.IndexByte(string(text), 0); i >= 0 {
		return bad(1+strings.Count(string(text[:i]), "\n"), "it has a NUL byte in it")
	}
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	if at := invalidUTF8(text); at >= 0 {
		return bad(1+bytes.Count(text[:at], []byte("\n")), "it is not UTF-8")
	}
	if line := tooDeep(string(text), false); line > 0 {
		return bad(line, "nested too deep")
	}
	doc, err := parser.ParseBytes(text, 0)
	if err != nil {
		line, msg := yamlError(err)
		return bad(line, "%s", msg)
	}
	c := &converter{anchors: map[string]ast.Node{}}
	for _, d := range doc.Docs {
		if d.Body == nil {
			continue
		}
		if root != nil {
			return bad(lineOfNode(d.Body), "a second document begins; give one")
		}
		if root = c.node(d.Body, 0); c.err != "" {
			return bad(c.line, "%s", c.err)
		}
	}
	if root == nil {
		return bad(1, "the file is empty")
	}
	return root, nil
}

var yamlErrorRE = regexp.MustCompile(`^\[(\d+):\d+\] (.*)`)

// yamlError takes line and message out of the library's error, which shows source lines
// after the first.
func yamlError(err error) (int, string) {
	first, _, _ := strings.Cut(err.Error(), "\n")
	if m := yamlErrorRE.FindStringSubmatch(first); m != nil {
		line, _ := strconv.Atoi(m[1])
		return line, m[2]
	}
	return 1, first
}

// floatRE is a number with an exponent and no point, which YAML 1.1 takes for text and
// everybody means as a number.
var floatRE = regexp.MustCompile(`^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$`)

// converter turns the library's tree into ours, following aliases, with a bound on what
// they may blow up to.
type converter struct {
	anchors map[string]ast.Node
	count   int
	err     string
	line    int
}

func lineOfNode(n ast.Node) int {
	if tk := n.GetToken(); tk != nil && tk.Position != nil {
		return tk.Position.Line
	}
	return 1
}

func (c *converter) fail(n ast.Node, msg string) *node {
	if c.err == "" {
		c.err, c.line = msg, lineOfNode(n)
	}
	return &node{line: lineOfNode(n)}
}

func (c *converter) node(n ast.Node, depth int) *node {
	if c.count++; c.count > 100_000 || depth > 64 {
		return c.fail(n, "too large or nested too deep")
	}
	out := &node{line: lineOfNode(n)}
	switch n := n.(type) {
	case *ast.MappingNode:
		o := newObject()
		out.val = o
		for _, v := range n.Values {
			c.pair(o, v, depth)
		}
		for _, v := range n.Values { // what is merged in yields to what is written
			c.merge(o, v, depth)
		}
		if len(n.Values) > 0 {
			out.line = lineOfNode(n.Values[0].Key)
		}
	case *ast.MappingValueNode:
		o := newObject()
		out.val, out.line = o, lineOfNode(n.Key)
		c.pair(o, n, depth)
		c.merge(o, n, depth)
	case *ast.SequenceNode:
		list := make([]*node, 0, len(n.Values))
		for _, v := range n.Values {
			list = append(list, c.node(v, depth+1))
		}
		out.val = list
	case *ast.AnchorNode:
		name := n.Name.GetToken().Value
		inner := c.node(n.Value, depth+1)
		c.anchors[name] = n.Value
		return inner
	case *ast.AliasNode:
		target := c.anchors[n.Value.GetToken().Value]
		if target == nil {
			return c.fail(n, "the alias *"+n.Value.GetToken().Value+" has no anchor before it")
		}
		inner := c.node(target, depth+1)
		return &node{line: out.line, val: inner.val}
	case *ast.TagNode:
		return c.node(n.Value, depth+1)
	case *ast.StringNode:
		out.val = n.Value
		if n.Token.Type == token.StringType && floatRE.MatchString(n.Value) { // 1e-5, not quoted
			if v, err := strconv.ParseFloat(n.Value, 64); err == nil {
				out.val = v
			}
		}
	case *ast.LiteralNode:
		out.val = n.Value.Value
	case *ast.IntegerNode:
		switch v := n.Value.(type) {
		case int64:
			out.val = v
		case uint64:
			if v > math.MaxInt64 {
				return c.fail(n, fmt.Sprintf("%d is too large", v))
			}
			out.val = int64(v)
		}
	case *ast.FloatNode:
		out.val = n.Value
	case *ast.BoolNode:
		out.val = n.Value
	case *ast.InfinityNode:
		out.val = n.Value
	case *ast.NanNode:
		out.val = math.NaN()
	case *ast.NullNode:
	default:
		return c.fail(n, "something that no sweep file has")
	}
	return out
}

// merge brings in the keys of <<: *anchor that o does not have.
func (c *converter) merge(o *object, v *ast.MappingValueNode, depth int) {
	if _, ok := v.Key.(*ast.MergeKeyNode); !ok {
		return
	}
	from, ok := c.node(v.Value, depth+1).val.(*object)
	if !ok {
		c.fail(v, "<< takes a mapping")
		return
	}
	for _, k := range from.keys {
		if o.m[k] == nil {
			o.set(k, from.m[k])
		}
	}
}

func (c *converter) pair(o *object, v *ast.MappingValueNode, depth int) {
	if _, ok := v.Key.(*ast.MergeKeyNode); ok {
		return
	}
	key := v.Key.GetToken().Value
	val := c.node(v.Value, depth+1)
	val.line = lineOfNode(v.Key) // a fault is best shown where its key stands
	if o.m[key] != nil {
		c.fail(v.Key, fmt.Sprintf("the key %s is there twice", key))
		return
	}
	o.set(key, val)
}
