package session

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"launcher/wire"
	"launcher/wire/secure"
)

var rewrite = flag.Bool("rewrite", false, "write the vectors of docs/protocol.md anew")

func TestVectors(t *testing.T) {
	const path, begin, end = "../../docs/protocol.md", "<!-- vectors: session -->\n```\n", "```\n<!-- end -->"
	h := hello{wire.ProtocolMajor, wire.ProtocolMinor, helloBody{Build: "v1", Cluster: "lab", Role: uint8(secure.RoleAgent), Name: "local-0", PID: 42, Clock: 5}}
	line := func(name string, b []byte) string { return fmt.Sprintf("%-20s %s\n", name, hex.EncodeToString(b)) }
	want := line("hello", h.append(nil)) +
		line("open", append(appendHead(nil, muxOpen, 0, 1, 2), 2, 0)) +
		line("data", append(appendHead(nil, muxData, 0, 1, 2), "hi"...)) +
		line("end", appendHead(nil, muxEnd, endSending|endReceiving, 1, 0))
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(doc), begin)
	listed, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no list of vectors", path)
	}
	if *rewrite {
		if err := os.WriteFile(path, []byte(before+begin+want+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if listed != want {
		t.Errorf("%s lists\n%s\nbut this version writes\n%s", path, listed, want)
	}
	again, err := readHello(bytes.NewReader(h.append(nil)))
	if err != nil || again != h {
		t.Errorf("%+v became %+v, %v", h, again, err)
	}
}
