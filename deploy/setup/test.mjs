/** `npm test` after set-up: types, lint, then every test; ends with one line that says how many passed. */
import { spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync, rmSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..')
const reports = path.join(root, '.frameloop/test-reports')
rmSync(reports, { recursive: true, force: true })
mkdirSync(reports, { recursive: true })

const run = (script) => spawnSync('npm', ['run', '-s', script], { cwd: root, stdio: 'inherit' }).status ?? 1
const failures = []
for (const script of ['types', 'lint']) {
  process.stdout.write(`[test] ${script}\n`)
  if (run(script) !== 0) failures.push(script)
}
/** Undefined where the runner has not come to its end. */
function readReport(file) {
  try {
    return JSON.parse(readFileSync(file, 'utf8'))
  } catch {
    return undefined
  }
}
let [passed, failed, skipped] = [0, failures.length, 0]
// one after the other: the stack of the end-to-end tests has a camera that would keep the machine busy
const projects = { unit: 'unit', own: 'stacks of their own', e2e: 'end to end' }
for (const [project, about] of Object.entries(projects)) {
  process.stdout.write(`[test] ${about}\n`)
  const report = path.join(reports, `${project}.json`)
  const args = ['run', '--project', project, '--reporter=default', '--reporter=json', `--outputFile.json=${report}`]
  const { status } = spawnSync(process.execPath, [path.join(root, 'node_modules/vitest/vitest.mjs'), ...args], { cwd: root, stdio: 'inherit' })
  const found = readReport(report)
  if (!found) {
    process.stdout.write('The test runner ended without a report.\n')
    failed += 1
    continue
  }
  const { numPassedTests, numFailedTests, numPendingTests, numTodoTests, testResults } = found
  // a file that cannot be loaded, or a set-up that fails, has no tests to count but is a failure all the same
  const brokenFiles = testResults.filter((file) => file.status === 'failed' && file.assertionResults.every((test) => test.status !== 'failed')).length
  passed += numPassedTests
  failed += numFailedTests + brokenFiles + (status !== 0 && numFailedTests + brokenFiles === 0 ? 1 : 0)
  skipped += numPendingTests + numTodoTests
}
if (failures.length > 0) process.stdout.write(`failed before the tests: ${failures.join(', ')}\n`)
process.stdout.write(`${passed} passed, ${failed} failed, ${skipped} skipped\n`)
process.exit(failed > 0 || passed === 0 ? 1 : 0)
