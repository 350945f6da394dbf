import { defineConfig } from 'vitest/config'

const slow = { pool: 'forks' as const, fileParallelism: false, testTimeout: 180_000, hookTimeout: 240_000 }

/** `unit`: beside the code, no services. `e2e`: the real stack, started once and shared. `faults` and `soak`: long, each with a stack of its own; not in `npm test`. */
export default defineConfig({
  test: {
    projects: [
      { test: { name: 'unit', include: ['*/src/**/*.test.ts', 'cloud/client/src/**/*.test.ts'], isolate: false, testTimeout: 60_000 } },
      { test: { name: 'faults', include: ['deploy/faults/**/*.test.ts'], ...slow } },
      { test: { name: 'soak', include: ['deploy/soak/**/*.test.ts'], ...slow, testTimeout: 7_200_000 } },
      { test: { name: 'e2e', include: ['deploy/e2e/**/*.test.ts'], globalSetup: ['deploy/e2e/stack.ts'], ...slow } },
    ],
  },
})
