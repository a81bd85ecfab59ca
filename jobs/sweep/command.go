package sweep

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// JSON renders the parameters as an object, in their order. A dotted name becomes a
// nested object, as it stood in the file, unless another parameter is in the way.
func JSON(values []Value) []byte {
	root := &object{}
	for _, v := range values {
		root.put(strings.Split(v.Name, "."), v)
	}
	var b bytes.Buffer
	root.write(&b)
	return b.Bytes()
}

type object struct {
	keys []string
	vals []any // *object, or a plain value
}

func (o *object) put(path []string, v Value) {
	at := o
	for i, k := range path[:len(path)-1] {
		j := slices.Index(at.keys, k)
		if j < 0 {
			next := &object{}
			at.keys, at.vals = append(at.keys, k), append(at.vals, next)
			at = next
			continue
		}
		next, ok := at.vals[j].(*object)
		if !ok { // "a" is a value and "a.b" another
			at.keys, at.vals = append(at.keys, strings.Join(path[i:], ".")), append(at.vals, v.V)
			return
		}
		at = next
	}
	at.keys, at.vals = append(at.keys, path[len(path)-1]), append(at.vals, v.V)
}

func (o *object) write(b *bytes.Buffer) {
	b.WriteByte('{')
	for i, k := range o.keys {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(quote(k))
		b.WriteString(": ")
		if sub, ok := o.vals[i].(*object); ok {
			sub.write(b)
		} else {
			writeValue(b, o.vals[i])
		}
	}
	b.WriteByte('}')
}

// writeValue writes a value as Python's json does: a float keeps its point.
func writeValue(b *bytes.Buffer, v any) {
	switch v := v.(type) {
	case float64:
		b.WriteString(float(v))
	case float32:
		b.WriteString(float(float64(v)))
	case string:
		b.WriteString(quote(v))
	case []any:
		b.WriteByte('[')
		for i, e := range v {
			if i > 0 {
				b.WriteString(", ")
			}
			writeValue(b, e)
		}
		b.WriteByte(']')
	case map[string]any:
		o := &object{}
		for k := range v {
			o.keys = append(o.keys, k)
		}
		slices.Sort(o.keys)
		for _, k := range o.keys {
			o.vals = append(o.vals, v[k])
		}
		b.WriteByte('{')
		for i, k := range o.keys {
			if i > 0 {
				b.WriteString(", ")
			}
			b.WriteString(quote(k) + ": ")
			writeValue(b, o.vals[i])
		}
		b.WriteByte('}')
	default:
		j, err := json.Marshal(v)
		if err != nil {
			j = []byte("null")
		}
		b.Write(j)
	}
}

func quote(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a string always encodes
	return strings.TrimSuffix(b.String(), "\n")
}

func float(v float64) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return "null"
	}
	s := strconv.FormatFloat(v, 'g', -1, 64)
	if !strings.ContainsAny(s, ".e") {
		s += ".0"
	}
	return s
}

// Text is a value as it stands on a command line, the way Python prints it, which is
// what W&B does: True, None, 0.1, [1, 2].
func Text(v any) string {
	switch v := v.(type) {
	case nil:
		return "None"
	case bool:
		if v {
			return "True"
		}
		return "False"
	case string:
		return v
	}
	var b bytes.Buffer
	writeValue(&b, v)
	return b.String()
}

var macroRE = regexp.MustCompile(`\$\{([^}]*)\}`)

// Expand fills the macros of a W&B command for one trial: ${env} ${interpreter}
// ${program} ${args} ${args_no_boolean_flags} ${args_no_hyphens} ${args_json}
// ${args_json_file} ${envvar:NAME}. One that is an element of its own may become
// several; inside an element its parts are joined by spaces.
//
// The file of ${args_json_file} and the variables of ${envvar:NAME} are known on the
// node only: a command with one of them is run through sh, which puts them in and
// becomes the command (exec).
func Expand(command []string, program string, values []Value) []string {
	var words []word
	late := false
	for _, arg := range command {
		if m := macroRE.FindStringSubmatch(arg); m != nil && m[0] == arg {
			if parts, ok := macro(m[1], program, values); ok {
				for _, p := range parts {
					words = append(words, word{{text: p}})
				}
				continue
			}
		}
		w := word{}
		at := 0
		for _, loc := range macroRE.FindAllStringSubmatchIndex(arg, -1) {
			w = append(w, piece{text: arg[at:loc[0]]})
			at = loc[1]
			name := arg[loc[2]:loc[3]]
			if parts, ok := macro(name, program, values); ok {
				w = append(w, piece{text: strings.Join(parts, " ")})
			} else if v := variable(name); v != "" {
				late = true
				w = append(w, piece{variable: v})
			} else {
				w = append(w, piece{text: arg[loc[0]:loc[1]]})
			}
		}
		words = append(words, append(w, piece{text: arg[at:]}))
	}
	if !late {
		out := make([]string, len(words))
		for i, w := range words {
			for _, p := range w {
				out[i] += p.text
			}
		}
		return out
	}
	script := "exec"
	for _, w := range words {
		script += " ''"
		for _, p := range w {
			if p.variable != "" {
				script += fmt.Sprintf(`"${%s?not set on this node}"`, p.variable)
			} else {
				script += shellQuote(p.text)
			}
		}
	}
	return []string{"/bin/sh", "-c", script}
}

// A word is one argument, in pieces: text, or a variable of the node.
type word []piece
type piece struct{ text, variable string }

var nameRE = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func variable(macro string) string {
	if macro == "args_json_file" {
		return "LAUNCHER_PARAMS"
	}
	if v, ok := strings.CutPrefix(macro, "envvar:"); ok && nameRE.MatchString(v) {
		return v
	}
	return ""
}

func macro(name, program string, values []Value) ([]string, bool) {
	var out []string
	switch name {
	case "env":
		return []string{"/usr/bin/env"}, true
	case "interpreter":
		return []string{"python3"}, true
	case "program":
		return []string{program}, true
	case "args_json":
		return []string{string(JSON(values))}, true
	case "args", "args_no_hyphens", "args_no_boolean_flags":
		for _, v := range values {
			b, isBool := v.V.(bool)
			switch {
			case name == "args_no_hyphens":
				out = append(out, v.Name+"="+Text(v.V))
			case name == "args_no_boolean_flags" && isBool:
				if b {
					out = append(out, "--"+v.Name)
				}
			default:
				out = append(out, "--"+v.Name+"="+Text(v.V))
			}
		}
		return out, true
	}
	return nil, false
}

func shellQuote(s string) string {
	if s == "" {
		return ""
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
