import { basename } from 'node:path'
import { defineConfig } from 'vitest/config'
import { BaseSequencer, type TestSpecification } from 'vitest/node'

/** End-to-end tests share a stack, so they run in the order of their numbers, the same each time; others as they are named. */
class ByNumber extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const placeOf = ({ moduleId }: TestSpecification): number => Number.parseInt(basename(moduleId), 10) || 0
    return [...files].sort((a, b) => placeOf(a) - placeOf(b) || (a.moduleId < b.moduleId ? -1 : 1))
  }
}

/** Their limits end what hangs; how long anything takes is for the benchmarks to say, on a machine that others do not use. */
const slow = { pool: 'forks' as const, fileParallelism: false, testTimeout: 900_000, hookTimeout: 900_000 }

/** `unit`: beside the code, no services. `own`: a stack of its own for each file, before there is a shared one on the same cores. `e2e`: the real stack, started once and shared. `faults` and `soak`: long, each with a stack of its own; not in `npm test`. */
export default defineConfig({
  test: {
    sequence: { sequencer: ByNumber },
    projects: [
      { test: { name: 'unit', include: ['*/src/**/*.test.ts', 'cloud/client/src/**/*.test.ts'], isolate: false, maxWorkers: 2, testTimeout: 60_000 } },
      { test: { name: 'faults', include: ['deploy/faults/**/*.test.ts'], ...slow } },
      { test: { name: 'soak', include: ['deploy/soak/**/*.test.ts'], ...slow, testTimeout: 7_200_000 } },
      { test: { name: 'own', include: ['deploy/e2e/own/*.test.ts'], ...slow } },
      { test: { name: 'e2e', include: ['deploy/e2e/*.test.ts'], globalSetup: ['deploy/e2e/stack.ts'], ...slow } },
    ],
  },
})
