export interface Prerequisite {
  readonly name: string
  readonly why: string
  readonly found: string | undefined
  readonly apt: readonly string[]
  readonly dnf: string
  readonly brew: string
}
export function findPython(): { readonly name: string; readonly version: string } | undefined
export function prerequisites(options?: { readonly tests?: boolean }): Prerequisite[]
export function prerequisiteTable(rows: readonly Prerequisite[]): string
export function installCommands(missing: readonly Prerequisite[]): string
export function doctor(): boolean
