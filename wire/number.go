package wire

import (
	"encoding/json"
	"math"
	"strconv"

	"launcher/internal/errs"
)

// Number is a float64 in JSON. JSON has no NaN and no infinities, yet a loss that
// diverged must be told: they are the strings "NaN", "Infinity" and "-Infinity". Both
// SDKs and the command send metrics so, and the agent reads them so.
type Number float64

// MarshalJSON implements json.Marshaler.
func (n Number) MarshalJSON() ([]byte, error) {
	switch v := float64(n); {
	case math.IsNaN(v):
		return []byte(`"NaN"`), nil
	case math.IsInf(v, 1):
		return []byte(`"Infinity"`), nil
	case math.IsInf(v, -1):
		return []byte(`"-Infinity"`), nil
	default:
		return json.Marshal(v)
	}
}

// UnmarshalJSON implements json.Unmarshaler.
func (n *Number) UnmarshalJSON(b []byte) error {
	switch string(b) {
	case `"NaN"`:
		*n = Number(math.NaN())
	case `"Infinity"`:
		*n = Number(math.Inf(1))
	case `"-Infinity"`:
		*n = Number(math.Inf(-1))
	default:
		v, err := strconv.ParseFloat(string(b), 64)
		if err != nil {
			return errs.New(errs.Invalid, "%.40s is not a number", b).Hint(`give a JSON number, or "NaN", "Infinity", "-Infinity"`)
		}
		*n = Number(v)
	}
	return nil
}
