/** What predictions take and answer, as JSON Schema for the API's description. The types of `@frameloop/client` say the same to programs. */
import { Problem } from '@frameloop/kit/http'
import Type, { type TSchema } from 'typebox'

const score = Type.Number({ minimum: 0, maximum: 1 })
const answer = {
  answer: Type.String(),
  confidence: score,
  scores: Type.Array(Type.Object({ class: Type.String(), score }), { description: 'of all classes; they sum to 1' }),
  ...{ modelName: Type.String(), modelVersion: Type.String(), modelDigest: Type.String(), preprocessing: Type.String() },
}
const traceId = Type.String({ pattern: '^[0-9a-f]{32}$' })

export const PictureAnswer = Type.Object({ task: Type.String(), traceId, ...answer })
export const FrameAnswers = Type.Object({
  camera: Type.String(),
  traceId,
  frameId: Type.Optional(Type.String()),
  answers: Type.Array(
    Type.Object(
      { zone: Type.String(), task: Type.String(), traceId, x: Type.Number(), y: Type.Number(), width: Type.Number(), height: Type.Number(), ...answer },
      { description: 'the zone in pixels' },
    ),
  ),
})
export const Models = Type.Object({
  models: Type.Array(
    Type.Object({
      ...{ task: Type.String(), modelName: Type.String(), version: Type.String(), alias: Type.String(), digest: Type.String(), engine: Type.String() },
      classes: Type.Array(Type.String()),
    }),
  ),
})

export const answered = (schema: TSchema): object => ({ 200: { description: 'answered', content: { 'application/json': { schema } } } })

const pictureTypes = ['image/jpeg', 'image/png', 'image/webp'] as const
/** A picture as the body, or several as the parts of a form. */
export const pictureBodies: Readonly<Record<string, object>> = {
  ...Object.fromEntries(pictureTypes.map((type) => [type, { schema: { type: 'string', contentMediaType: type } }])),
  'multipart/form-data': { schema: { type: 'object', additionalProperties: { type: 'string', contentMediaType: 'image/jpeg' }, description: 'pictures, under any names' } },
}
/** Of one picture, or of each in a form: what failed is a problem in its place. */
export const oneOrEach = (one: TSchema): object => answered(Type.Union([one, Type.Object({ answers: Type.Array(Type.Union([one, Problem])) })]))
