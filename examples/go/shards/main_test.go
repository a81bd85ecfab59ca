package main

import (
	"strings"
	"testing"

	"launcher/examples/go/gotest"
)

func TestMain(m *testing.M) { gotest.Main(m, main) }

func TestShards(t *testing.T) {
	out := gotest.Run(t, "-shards", "3", "-tasks", "8", "-adds", "100", "-kills", "4")
	if !strings.HasPrefix(out, "800 additions, the table has 800: ") {
		t.Errorf("%q", out)
	}
}
