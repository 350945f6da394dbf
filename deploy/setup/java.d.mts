export function javaProgram(): string
export const javaFlags: readonly string[]
export function brokerClassPath(): string
export function brokerCacheFlags(): readonly string[]
