package wire

import (
	"encoding/json"
	"math"
	"testing"
)

func TestNumber(t *testing.T) {
	for text, want := range map[string]float64{"0.5": 0.5, "-1e-7": -1e-7, "3": 3, `"NaN"`: math.NaN(), `"Infinity"`: math.Inf(1), `"-Infinity"`: math.Inf(-1)} {
		var n Number
		if err := json.Unmarshal([]byte(text), &n); err != nil || float64(n) != want && !(math.IsNaN(want) && math.IsNaN(float64(n))) {
			t.Errorf("%s: %v, %v", text, n, err)
		}
		var again Number
		b, err := json.Marshal(n)
		if err == nil {
			err = json.Unmarshal(b, &again)
		}
		if err != nil || math.Float64bits(float64(again)) != math.Float64bits(float64(n)) {
			t.Errorf("%s: back as %s, %v, %v", text, b, again, err)
		}
	}
	for _, text := range []string{`"0.5"`, `"nan"`, "true", "null", "[1]", `"x"`} {
		var n Number
		if err := json.Unmarshal([]byte(text), &n); err == nil {
			t.Errorf("%s: taken as %v", text, n)
		}
	}
}
