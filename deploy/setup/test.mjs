/** `npm test` after set-up: types, lint, then every test; ends with one line that says how many passed. */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..')
const report = path.join(root, '.frameloop/test-report.json')
mkdirSync(path.dirname(report), { recursive: true })
rmSync(report, { force: true })

const run = (script, ...args) => spawnSync('npm', ['run', '-s', script, ...args], { cwd: root, stdio: 'inherit' }).status ?? 1
const failures = []
for (const script of ['types', 'lint']) {
  process.stdout.write(`[test] ${script}\n`)
  if (run(script) !== 0) failures.push(script)
}
process.stdout.write('[test] unit and end to end\n')
const status =
  spawnSync(
    process.execPath,
    [path.join(root, 'node_modules/vitest/vitest.mjs'), 'run', '--project', 'unit', '--project', 'e2e', '--reporter=default', '--reporter=json', `--outputFile.json=${report}`],
    {
      cwd: root,
      stdio: 'inherit',
    },
  ).status ?? 1
if (!existsSync(report)) {
  process.stdout.write('The test runner ended without a report.\n0 passed, 1 failed\n')
  process.exit(1)
}
const { numPassedTests, numFailedTests, numPendingTests, numTodoTests, testResults } = JSON.parse(readFileSync(report, 'utf8'))
// a file that cannot be loaded, or a set-up that fails, has no tests to count but is a failure all the same
const brokenFiles = testResults.filter((file) => file.status === 'failed' && file.assertionResults.every((test) => test.status !== 'failed')).length
const failed = numFailedTests + brokenFiles + failures.length + (status !== 0 && numFailedTests + brokenFiles === 0 ? 1 : 0)
if (failures.length > 0) process.stdout.write(`failed before the tests: ${failures.join(', ')}\n`)
process.stdout.write(`${numPassedTests} passed, ${failed} failed, ${numPendingTests + numTodoTests} skipped\n`)
process.exit(failed > 0 || numPassedTests === 0 ? 1 : 0)
