/** The page: cameras with their live answers, the way of a frame, models, what is happening. */
import { render } from 'preact'
import './page.css'
import { type Answer, answers, type Camera, connected, overview, type Quality, type Run, rates, start } from './store.ts'

const percent = (value: number | null | undefined): string => (value === null || value === undefined ? '–' : `${(value * 100).toFixed(1)} %`)
const time = (text: string): string => new Date(text).toLocaleTimeString()

function ZoneBox({ answer }: { readonly answer: Answer }) {
  const part = (value: number, whole: number): string => `${(value / whole) * 100}%`
  const { pictureWidth, pictureHeight } = answer
  return (
    <div
      class={`zone ${answer.answer}`}
      style={{ left: part(answer.x, pictureWidth), top: part(answer.y, pictureHeight), width: part(answer.width, pictureWidth), height: part(answer.height, pictureHeight) }}
      title={`${answer.zone}: ${answer.answer}, confidence ${answer.confidence.toFixed(3)}, version ${answer.modelVersion}`}
    >
      <span>
        {answer.answer} {Math.round(answer.confidence * 100)} %
      </span>
    </div>
  )
}

function CameraCard({ camera }: { readonly camera: Camera }) {
  const found = Object.values(answers.value[camera.cameraId] ?? {})
  const newest = found.reduce<Answer | undefined>((latest, answer) => (!latest || answer.frameAt >= latest.frameAt ? answer : latest), undefined)
  const shown = newest ? found.filter(({ frameId }) => frameId === newest.frameId) : []
  return (
    <article class="card camera">
      <header>
        <h3>{camera.cameraId}</h3>
        {camera.sourceKind === 'simulator' && <span class="tag simulated">simulated</span>}
        {camera.isSilent ? (
          <span class="tag bad">not heard of since {new Date(camera.reportedAt).toLocaleTimeString()}</span>
        ) : (
          <>
            <span class={`tag ${camera.state === 'streaming' ? 'good' : 'bad'}`}>{camera.state}</span>
            <span class="quiet">{camera.framesPerSecond.toFixed(1)} fps</span>
          </>
        )}
      </header>
      {newest ? (
        <div class="picture" style={{ aspectRatio: `${newest.pictureWidth} / ${newest.pictureHeight}` }}>
          <img src={`/api/pictures/${newest.pictureKey}`} alt={`newest answered frame of ${camera.cameraId}`} />
          {shown.map((answer) => (
            <ZoneBox key={`${answer.task} ${answer.zone}`} answer={answer} />
          ))}
        </div>
      ) : (
        <p class="empty">{camera.state === 'ended' ? 'This camera does not run now.' : 'No answer yet: the first model is still to come.'}</p>
      )}
      {newest && (
        <footer class="quiet">
          answered {Math.max(0, newest.answeredAt - newest.frameAt)} ms after capture, version {newest.modelVersion}, frame <code>{newest.frameId.slice(0, 8)}</code>
        </footer>
      )}
    </article>
  )
}

const steps: readonly [stage: string, does: string][] = [
  ['agent', 'captures, spools, uploads'],
  ['validate', 'checks bytes and picture'],
  ['extract', 'takes frames'],
  ['features', 'crops and resizes zones'],
  ['serve', 'answers'],
  ['catalog', 'records everything'],
]

function Way() {
  const stages = overview.value?.stages ?? []
  return (
    <ol class="way">
      {steps.map(([name, does]) => {
        const stage = stages.find((one) => one.stage === name)
        return (
          <li key={name} class={stage?.up === false ? 'down' : ''}>
            <b>{name}</b>
            <span class="quiet">{does}</span>
            <span class="figure">{(rates.value[name] ?? 0).toFixed(1)} / s</span>
            <span class={`lag ${(stage?.lag ?? 0) > 50 ? 'bad' : ''}`}>{stage?.up === false ? 'not answering' : name === 'agent' ? 'durable' : `lag ${stage?.lag ?? 0}`}</span>
          </li>
        )
      })}
    </ol>
  )
}

function QualityCard({ quality }: { readonly quality: Quality }) {
  return (
    <article class="card quality">
      <h3>{quality.task}</h3>
      <p class="big">{quality.classes < 2 ? '–' : percent(quality.balancedAccuracy)}</p>
      <p>
        live balanced accuracy against the truth, version {quality.modelVersion}, only frames captured after its dataset was cut: n = {quality.n}; always saying the majority would
        be right in {percent(quality.majorityAccuracy)}
        {quality.classes < 2 ? ' (one class seen so far)' : ''}
      </p>
    </article>
  )
}

function Models() {
  const models = overview.value?.models ?? []
  if (models.length === 0) return <p class="empty">No model yet. The first one is trained about a minute after the cameras begin.</p>
  return (
    <div class="scroll">
      <table>
        <thead>
          <tr>
            <th>task</th>
            <th>version</th>
            <th>held out</th>
            <th>n</th>
            <th>serves as</th>
            <th>why</th>
          </tr>
        </thead>
        <tbody>
          {models.map((model) => (
            <tr key={`${model.task} ${model.version}`}>
              <td>{model.task}</td>
              <td data-name="version">{model.version}</td>
              <td data-name="held out">{model.n ? percent(model.balancedAccuracy) : '–'}</td>
              <td data-name="n">{model.n ?? 0}</td>
              <td>{model.alias ? <span class="tag good">{model.alias}</span> : ''}</td>
              <td class="quiet">{model.reason ?? ''}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  )
}

function RunLine({ run }: { readonly run: Run }) {
  return (
    <li>
      <span class="quiet">{time(run.requestedAt)}</span> training of {run.task} ({run.cause}):{' '}
      {run.state === 'training' ? (
        <>
          epoch {run.epoch} of {run.epochs}
          {run.loss === null ? '' : `, loss ${run.loss.toFixed(4)}`} <progress value={run.epoch} max={run.epochs} />
        </>
      ) : (
        <>
          {run.state}
          {run.version ? `, version ${run.version}` : ''}
          {run.promoted ? ', promoted' : ''}
          {run.reason ? ` – ${run.reason}` : ''}
        </>
      )}
    </li>
  )
}

function Now() {
  const found = overview.value
  const nothing = !found || (found.runs.length === 0 && found.rejections.length === 0)
  return (
    <ul class="now">
      {nothing && <li class="quiet">Nothing yet.</li>}
      {found?.runs.map((run) => (
        <RunLine key={run.requestId} run={run} />
      ))}
      {found?.rejections.map((rejection) => (
        <li key={`${rejection.at} ${rejection.message}`}>
          <span class="quiet">{time(rejection.at)}</span> {rejection.stage} refused a record of {rejection.cameraId}: <b>{rejection.reason}</b> – {rejection.message}
        </li>
      ))}
    </ul>
  )
}

function Page() {
  const found = overview.value
  return (
    <>
      <header class="top">
        <h1>frameloop</h1>
        <span class={`tag ${connected.value ? 'good' : 'bad'}`}>{connected.value ? 'live' : 'reconnecting'}</span>
      </header>
      <main>
        <section class="wide">
          <h2>Cameras</h2>
          <div class="cards">
            {found?.cameras.map((camera) => (
              <CameraCard key={camera.cameraId} camera={camera} />
            ))}
            {found?.cameras.length === 0 && <p class="empty">No camera has reported yet.</p>}
          </div>
        </section>
        <section class="wide">
          <h2>The way of a frame</h2>
          <Way />
        </section>
        {(found?.quality.length ?? 0) > 0 && (
          <section class="wide">
            <h2>Is it right?</h2>
            <div class="cards">
              {found?.quality.map((quality) => (
                <QualityCard key={quality.task} quality={quality} />
              ))}
            </div>
          </section>
        )}
        <section>
          <h2>Models</h2>
          <Models />
        </section>
        <section>
          <h2>Now</h2>
          <Now />
        </section>
      </main>
    </>
  )
}

start()
const root = document.getElementById('page')
if (root) render(<Page />, root)
