;; The inner loops of resize.ts: separable weighted sums over RGB bytes, four lanes at a time (R, G, B and one that is not used).
;; An axis is three i32 for each target pixel: first source pixel, number of them, index of the first weight.
(module
  (memory (export "memory") 1)
  (func (export "resize")
    (param $base i32)     ;; first byte of the crop
    (param $stride i32)   ;; bytes from one source line to the next
    (param $width i32) (param $height i32)
    (param $across i32) (param $acrossWeights i32)
    (param $down i32) (param $downWeights i32)
    (param $held i32)     ;; source lines that one target line needs at most
    (param $lines i32)    ;; room for that many, 16 bytes a pixel
    (param $out i32)      ;; 3 bytes a pixel, and one to spare behind the last
    (local $j i32) (local $i i32) (local $y i32) (local $until i32) (local $done i32) (local $line i32) (local $linesEnd i32)
    (local $axis i32) (local $at i32) (local $weight i32) (local $end i32) (local $to i32) (local $first i32) (local $sum v128)
    (local.set $line (i32.shl (local.get $width) (i32.const 4)))
    (local.set $linesEnd (i32.add (local.get $lines) (i32.mul (local.get $held) (local.get $line))))
    (local.set $done (i32.const -1))
    (loop $targetLines
      (local.set $axis (i32.add (local.get $down) (i32.mul (local.get $j) (i32.const 12))))
      (local.set $y (i32.load (local.get $axis)))
      (local.set $until (i32.add (local.get $y) (i32.load offset=4 (local.get $axis))))
      (local.set $first (i32.add (local.get $lines) (i32.mul (i32.rem_u (local.get $y) (local.get $held)) (local.get $line))))
      ;; source lines that were not yet resized across
      (loop $sourceLines
        (if (i32.gt_s (local.get $y) (local.get $done))
          (then
            (local.set $to (i32.add (local.get $lines) (i32.mul (i32.rem_u (local.get $y) (local.get $held)) (local.get $line))))
            (local.set $i (i32.const 0))
            (loop $pixels
              (local.set $axis (i32.add (local.get $across) (i32.mul (local.get $i) (i32.const 12))))
              (local.set $at
                (i32.add
                  (i32.add (local.get $base) (i32.mul (local.get $y) (local.get $stride)))
                  (i32.mul (i32.load (local.get $axis)) (i32.const 3))))
              (local.set $weight (i32.add (local.get $acrossWeights) (i32.shl (i32.load offset=8 (local.get $axis)) (i32.const 2))))
              (local.set $end (i32.add (local.get $weight) (i32.shl (i32.load offset=4 (local.get $axis)) (i32.const 2))))
              (local.set $sum (v128.const i32x4 0 0 0 0))
              (loop $taps
                (local.set $sum
                  (f32x4.add
                    (local.get $sum)
                    (f32x4.mul
                      (f32x4.convert_i32x4_u (i32x4.extend_low_i16x8_u (i16x8.extend_low_i8x16_u (v128.load32_zero (local.get $at)))))
                      (v128.load32_splat (local.get $weight)))))
                (local.set $at (i32.add (local.get $at) (i32.const 3)))
                (br_if $taps (i32.lt_u (local.tee $weight (i32.add (local.get $weight) (i32.const 4))) (local.get $end))))
              (v128.store (local.get $to) (local.get $sum))
              (local.set $to (i32.add (local.get $to) (i32.const 16)))
              (br_if $pixels (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (local.get $width))))
            (local.set $done (local.get $y))))
        (br_if $sourceLines (i32.lt_s (local.tee $y (i32.add (local.get $y) (i32.const 1))) (local.get $until))))
      ;; their weighted sum down
      (local.set $axis (i32.add (local.get $down) (i32.mul (local.get $j) (i32.const 12))))
      (local.set $i (i32.const 0))
      (loop $pixels
        (local.set $weight (i32.add (local.get $downWeights) (i32.shl (i32.load offset=8 (local.get $axis)) (i32.const 2))))
        (local.set $end (i32.add (local.get $weight) (i32.shl (i32.load offset=4 (local.get $axis)) (i32.const 2))))
        (local.set $at (i32.add (local.get $first) (i32.shl (local.get $i) (i32.const 4))))
        (local.set $sum (v128.const i32x4 0 0 0 0))
        (loop $taps
          (local.set $sum (f32x4.add (local.get $sum) (f32x4.mul (v128.load (local.get $at)) (v128.load32_splat (local.get $weight)))))
          (local.set $at (i32.add (local.get $at) (local.get $line)))
          (if (i32.ge_u (local.get $at) (local.get $linesEnd))
            (then (local.set $at (i32.sub (local.get $at) (i32.sub (local.get $linesEnd) (local.get $lines))))))
          (br_if $taps (i32.lt_u (local.tee $weight (i32.add (local.get $weight) (i32.const 4))) (local.get $end))))
        ;; nearest, and what overshoots is cut; the fourth byte is written over by the next pixel
        (local.set $sum (i32x4.trunc_sat_f32x4_s (f32x4.nearest (local.get $sum))))
        (local.set $sum (i16x8.narrow_i32x4_s (local.get $sum) (local.get $sum)))
        (v128.store32_lane 0 (local.get $out) (i8x16.narrow_i16x8_u (local.get $sum) (local.get $sum)))
        (local.set $out (i32.add (local.get $out) (i32.const 3)))
        (br_if $pixels (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (local.get $width))))
      (br_if $targetLines (i32.lt_u (local.tee $j (i32.add (local.get $j) (i32.const 1))) (local.get $height)))))
)
