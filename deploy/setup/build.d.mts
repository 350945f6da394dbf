export const buildFolder: string
export function bundle(entries: Readonly<Record<string, string>>, outdir: string): Promise<void>
export function buildMissing(folder?: string): Promise<string[]>
