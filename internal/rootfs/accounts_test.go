package rootfs

import (
	"bytes"
	"strings"
	"testing"
)

func TestAccountsField(t *testing.T) {
	const text = "rootless:a:1\n#root:b:2\nroot:c:3\nroot:d:4\nlast:e"
	tests := []struct {
		user  string
		index int
		want  string
		ok    bool
	}{
		{"root", 1, "c", true},
		{"root", 2, "3", true},
		{"root", 3, "", false},
		{"rootless", 1, "a", true},
		{"last", 1, "e", true},
		{"last", 2, "", false},
		{"nobody", 1, "", false},
	}
	for _, tt := range tests {
		if got, ok := accounts(text).field(tt.user, tt.index); got != tt.want || ok != tt.ok {
			t.Errorf("field(%q, %d) = %q, %v, want %q, %v", tt.user, tt.index, got, ok, tt.want, tt.ok)
		}
	}
}

func TestAccountsWithField(t *testing.T) {
	tests := []struct{ in, want string }{
		{"", ""},
		{"root", "root"},
		{"root:", "root:NEW"},
		{"root:*", "root:NEW"},
		{"root::0:", "root:NEW:0:"},
		{"a:b:c\nroot:*:1\nz:y", "a:b:c\nroot:NEW:1\nz:y"},
		{"root:*\r\nroot:*", "root:NEW\nroot:*"},
		{"\n\nroot:*:\n\n", "\n\nroot:NEW:\n\n"},
	}
	for _, tt := range tests {
		if got := string(accounts(tt.in).withField("root", fieldHash, "NEW")); got != tt.want {
			t.Errorf("withField(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

func TestAccountsWithLine(t *testing.T) {
	tests := []struct{ in, want string }{
		{"", "new\n"},
		{"a\n", "a\nnew\n"},
		{"a", "a\nnew\n"},
	}
	for _, tt := range tests {
		if got := string(accounts(tt.in).withLine("new")); got != tt.want {
			t.Errorf("withLine(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

// Whatever the file holds, only the one field of the one line changes.
func FuzzAccountsWithField(f *testing.F) {
	f.Add([]byte("root:*:1:0:99999:7:::\ndaemon:*:1::::::\n"), 1)
	f.Add([]byte("a\n\nroot:x"), 1)
	f.Add([]byte("root::::\nroot:x"), 2)
	f.Fuzz(func(t *testing.T, data []byte, index int) {
		if index < 0 || index > 9 {
			return
		}
		const value = "$6$salt$key"
		before := accounts(bytes.Clone(data))
		after := before.withField("root", index, value)
		if !bytes.Equal(before, data) {
			t.Fatal("the original was changed")
		}
		if _, ok := before.field("root", index); !ok {
			if !bytes.Equal(after, data) {
				t.Fatalf("withField(%q) = %q without such a field", data, after)
			}
			return
		}
		oldLines, newLines := strings.Split(string(data), "\n"), strings.Split(string(after), "\n")
		if len(oldLines) != len(newLines) {
			t.Fatalf("withField(%q) = %q has another number of lines", data, after)
		}
		done := false
		for i, line := range oldLines {
			want := line
			if fields := strings.Split(line, ":"); !done && fields[0] == "root" && len(fields) > 1 {
				done = true
				fields[index] = value
				want = strings.Join(fields, ":")
			}
			if newLines[i] != want {
				t.Fatalf("line %d = %q, want %q", i, newLines[i], want)
			}
		}
		if index > 0 {
			if got, ok := after.field("root", index); !ok || got != value {
				t.Fatalf("field after withField = %q, %v, want %q", got, ok, value)
			}
		}
	})
}
