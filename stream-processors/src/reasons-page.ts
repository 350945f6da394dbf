/** `docs/reasons.md`, made from the tables that the stages use: `npm run generate`. */
import { writeFileSync } from 'node:fs'
import { Fault } from '@frameloop/kit/fault'
import { reasons } from './chain/reasons.ts'
import { clipMarks, clockMarks, lookMarks, sequenceMarks } from './validate/rules.ts'

export function reasonsPage(): string {
  const refusals = Object.entries(reasons).map(([code, { stages, says }]) => `| \`${code}\` | ${stages} | ${says} | ${new Fault(code as keyof typeof reasons, '').hint} |`)
  const marks = Object.entries({ ...lookMarks, ...sequenceMarks, ...clockMarks, ...clipMarks }).map(([mark, { says }]) => `| \`${mark}\` | ${says} |`)
  return `# Why a record is refused, and what is marked

Made from the tables in \`stream-processors/src/chain/reasons.ts\` and \`stream-processors/src/validate/rules.ts\` by \`npm run generate\`.

## Refused

The record becomes a dead letter with its original bytes and this reason; its object is kept in quarantine, unless it was far longer than announced.
\`frameloop dead-letters list --reason CODE\` lists them, \`redrive\` sends them again.

| reason | stage | what it means | what to do |
| --- | --- | --- | --- |
${refusals.join('\n')}

## Marked

What is odd about media that go on all the same: \`marks\` in \`media.validated\`, \`parameters.validate.marks\` in the catalog,
\`frameloop_stage_marked_total\` in the metrics.

| mark | what it means |
| --- | --- |
${marks.join('\n')}
`
}

if (process.argv[1] === import.meta.filename) writeFileSync(new URL('../../docs/reasons.md', import.meta.url), reasonsPage())
