package tasks

import (
	"encoding/binary"
	"maps"
	"slices"
	"strings"

	"launcher/wire"
)

// withEnv adds variables to those of a key.
func withEnv(env string, more map[string]string) string {
	all := envOf(env)
	maps.Copy(all, more)
	var out []string
	for _, k := range slices.Sorted(maps.Keys(all)) {
		out = append(out, k+"="+all[k])
	}
	return strings.Join(out, "\x00")
}

// envOf reads the variables of a key.
func envOf(env string) map[string]string {
	all := map[string]string{}
	for kv := range strings.SplitSeq(env, "\x00") {
		if k, v, ok := strings.Cut(kv, "="); ok {
			all[k] = v
		}
	}
	return all
}

// withEnvOption adds variables to the options of a task: of two in a msgpack map the last counts.
func withEnvOption(text []byte, env map[string]string) []byte {
	n, rest := 0, text
	switch {
	case len(text) > 0 && text[0]&0xf0 == 0x80:
		n, rest = int(text[0]&0x0f), text[1:]
	case len(text) > 2 && text[0] == 0xde:
		n, rest = int(binary.BigEndian.Uint16(text[1:])), text[3:]
	case len(text) > 4 && text[0] == 0xdf:
		n, rest = int(binary.BigEndian.Uint32(text[1:])), text[5:]
	default:
		return text // no options that anybody writes
	}
	out := binary.BigEndian.AppendUint16([]byte{0xde}, uint16(n+1))
	return slices.Concat(out, rest, wire.Marshal("env"), wire.Marshal(env))
}
