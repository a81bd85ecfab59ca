package launcher

import (
	"encoding/hex"
	"reflect"
	"strings"
	"testing"
)

// Values as Python's SDK encodes them (python/launcher/_serial.py).
const (
	pickledAll   = "940000000000000080059589000000000000005d94287d94288c0161945d94284b014affffffff8a0500000080008a060000000000ff8a09ffffffffffffffff008a0800000000000000804bff4d00014a00000100658c01629443027879948c0163944e8c0164948889473ff800000000000087948c0165948c06c3bcc3bcc3bc948c0166947d948c0167945d948c0261329468027568046804652e"
	pickledBig   = "17000000000000008005950c000000000000008a090000000000000000012e"
	pickledInts  = "16000000000000008005950b000000000000005d94284b014b024b03652e"
	pickledArray = "7500000001000000c00000000000000018000000000000008005956a000000000000008c126e756d70792e636f72652e6e756d65726963948c0b5f66726f6d62756666657294939428978c056e756d7079948c0564747970659493948c02663894898887945294284b038c013c944e4e4e4affffffff4affffffff4b007494624b0385948c014394749452942e000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
	pickledSet   = "120000000000000080059507000000000000008f94284b01902e"
	pickledDate  = "2b0000000000000080059520000000000000008c086461746574696d65948c0464617465949394430407d0010194859452942e"
	pickledText  = "120000000000000080059507000000000000008c03eda080942e"
	pickledSelf  = "140000000000000080059509000000000000005d94284b016800652e"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPythonPlainData(t *testing.T) {
	var v any // of which bytes are a string, and numbers an int64, as in all of msgpack here
	if err := decodeValue(nil, formPython, unhex(t, pickledAll), &v, false); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"a": []any{int64(1), int64(-1), int64(1 << 31), int64(-1 << 40), int64(-1), int64(-1 << 63), int64(255), int64(256), int64(65536)},
		"b": "xy", "c": nil, "d": []any{true, false, 1.5}, "e": "üüü", "f": map[string]any{}, "g": []any{}, "a2": "a"}
	all, ok := v.([]any)
	if !ok || len(all) != 3 || all[1] != "b" || all[2] != "b" || !reflect.DeepEqual(all[0], want) {
		t.Errorf("got %#v", v)
	}
	var ints []int
	var floats []float64
	if err := decodeValue(nil, formPython, unhex(t, pickledInts), &ints, false); err != nil || !reflect.DeepEqual(ints, []int{1, 2, 3}) {
		t.Errorf("ints: %v, %v", ints, err)
	}
	if err := decodeValue(nil, formPython, unhex(t, pickledInts), &floats, false); err != nil || !reflect.DeepEqual(floats, []float64{1, 2, 3}) {
		t.Errorf("floats: %v, %v", floats, err)
	}
	var b []byte
	if err := decodeValue(nil, formPython, unhex(t, "110000000000000080059506000000000000004302787994"+"2e"), &b, false); err != nil || string(b) != "xy" {
		t.Errorf("bytes: %q, %v", b, err)
	}
}

func TestPythonNotPlain(t *testing.T) {
	laugh := "5d94" // a list of twice a list of twice ...
	for i := range 40 {
		laugh += "5d942868" + hex.EncodeToString([]byte{byte(i)}) + "68" + hex.EncodeToString([]byte{byte(i)}) + "65"
	}
	laugh += "2e"
	for value, want := range map[string]string{
		pickledBig: "int of more than 64 bits", pickledArray: "numpy.ndarray", pickledSet: "a Python set", pickledDate: "datetime.date",
		pickledText: "no UTF-8", pickledSelf: "contains itself", hex.EncodeToString([]byte{byte(len(laugh) / 2), byte(len(laugh) >> 9), 0, 0, 0, 0, 0, 0}) + laugh: "so many times",
	} {
		var v any
		if err := decodeValue(nil, formPython, unhex(t, value), &v, false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %v is no error with %q", value, err, want)
		}
	}
}

// FuzzPython: whatever comes is a value or an error.
func FuzzPython(f *testing.F) {
	for _, s := range []string{pickledAll, pickledBig, pickledArray, pickledSet, pickledSelf} {
		b, _ := hex.DecodeString(s)
		f.Add(b)
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		var v any
		_ = decodeValue(nil, formPython, b, &v, false)
	})
}
