package main

import (
	"strings"
	"testing"

	"launcher/examples/go/gotest"
)

func TestMain(m *testing.M) { gotest.Main(m, main) }

func TestWordCount(t *testing.T) {
	out := gotest.Run(t, "-parts", "6", "-words", "20000", "-reducers", "3", "-check")
	if !strings.HasPrefix(out, "120000 words, ") || !strings.HasSuffix(out, "the same as counted here\n") {
		t.Error(out)
	}
}
