package lint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// readsText are the functions that may decide by the text of an error, because a foreign program or library has no other
// sign. Each says so in a comment.
var readsText = []string{
	"ply/internal/cli/command/run.startStatus",
	"ply/internal/cli/config.helperGet",
	"ply/internal/cli/format.missingInStrings",
	"ply/internal/cli/client.connectError",
	"ply/internal/container/supervise.programFailure",
}

// No code branches on words: it asks for the class, the type or the status of an error, not for its text.
func TestNoCodeBranchesOnTheTextOfAnError(t *testing.T) {
	met := map[string]bool{}
	for _, p := range list(t, "./internal/...", "./cmd/...") {
		if strings.HasSuffix(p.Name, "test") { // suites and fixtures of tests
			continue
		}
		for _, f := range append(p.GoFiles, p.CgoFiles...) {
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, filepath.Join(p.Dir, f), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range file.Decls {
				fn, ok := d.(*ast.FuncDecl)
				if !ok || fn.Body == nil {
					continue
				}
				name := p.ImportPath + "." + fn.Name.Name
				for _, pos := range textTests(fn.Body) {
					met[name] = true
					if !slices.Contains(readsText, name) {
						t.Errorf("%s: %s decides by the text of an error: ask for its class or type", fset.Position(pos), name)
					}
				}
			}
		}
	}
	for _, name := range readsText {
		if !met[name] {
			t.Errorf("%s reads no text of an error any more: remove it from the list", name)
		}
	}
}

// textTests returns the places where a function compares or searches the result of an Error method, or a variable that
// holds such a result.
func textTests(body *ast.BlockStmt) []token.Pos {
	texts := map[string]bool{}
	isText := func(e ast.Expr) bool {
		switch e := e.(type) {
		case *ast.CallExpr:
			s, ok := e.Fun.(*ast.SelectorExpr)
			return ok && s.Sel.Name == "Error" && len(e.Args) == 0
		case *ast.Ident:
			return texts[e.Name]
		}
		return false
	}
	var found []token.Pos
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			for i, rhs := range n.Rhs {
				if id, ok := n.Lhs[min(i, len(n.Lhs)-1)].(*ast.Ident); ok && isText(rhs) {
					texts[id.Name] = true
				}
			}
		case *ast.BinaryExpr:
			if (n.Op == token.EQL || n.Op == token.NEQ) && (isText(n.X) || isText(n.Y)) {
				found = append(found, n.Pos())
			}
		case *ast.SwitchStmt:
			if n.Tag != nil && isText(n.Tag) {
				found = append(found, n.Pos())
			}
		case *ast.CallExpr:
			s, ok := n.Fun.(*ast.SelectorExpr)
			if !ok || len(n.Args) == 0 || !isText(n.Args[0]) {
				return true
			}
			if pkg, ok := s.X.(*ast.Ident); ok && pkg.Name == "strings" &&
				slices.Contains([]string{"Contains", "HasPrefix", "HasSuffix", "Index", "LastIndex", "EqualFold", "Cut", "CutPrefix", "CutSuffix", "ContainsAny"}, s.Sel.Name) {
				found = append(found, n.Pos())
			}
		}
		return true
	})
	return found
}
