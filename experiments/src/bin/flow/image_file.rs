//! A picture that is given to a command, as bytes in a model's shape.

use anyhow::{Result, ensure};
use experiments::data::picture;
use experiments::untrusted::read_regular;
use std::path::Path;

/// Bytes of a picture that is given to a command, at most.
pub const LARGEST_PICTURE: u64 = 1 << 28;

/// A file's image in the model's shape, planar; a grey one becomes three equal channels where the model has three.
pub fn read_image(
    path: &Path,
    [channels, height, width]: [usize; 3],
    size: Option<usize>,
) -> Result<Vec<u8>> {
    let name = path.display();
    ensure!(path.is_file(), "there is no image {name}: give a number in the data, or the path of a picture");
    let image = picture::decode(&read_regular(path, LARGEST_PICTURE)?, &name.to_string())?;
    let image = match size {
        Some(size) => picture::fit(image, size)?,
        None => image,
    };
    ensure!(
        (image.height() as usize, image.width() as usize) == (height, width),
        "{name} is {} × {} pixels (height × width), the model takes {height} × {width}: resize it",
        image.height(),
        image.width()
    );
    Ok(picture::bytes(&image, channels == 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_in_the_models_shape() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grey.png");
        image::GrayImage::from_fn(3, 2, |x, y| image::Luma([(10 * y + x) as u8])).save(&path).unwrap();
        let planar = read_image(&path, [3, 2, 3], None).unwrap();
        assert_eq!(planar, [0, 1, 2, 10, 11, 12].repeat(3));
        assert_eq!(read_image(&path, [1, 2, 3], None).unwrap(), planar[..6]);
        // Of the middle square, one row and column on each side.
        assert_eq!(
            read_image(&path, [1, 2, 2], Some(2)).unwrap(),
            [planar[0], planar[1], planar[3], planar[4]]
        );
        assert!(read_image(&path, [1, 3, 2], None).unwrap_err().to_string().contains("2 × 3"));
        assert!(
            read_image(&dir.path().join("none.png"), [1, 2, 3], None)
                .unwrap_err()
                .to_string()
                .contains("none.png")
        );
        std::fs::write(&path, "text").unwrap();
        assert!(read_image(&path, [1, 2, 3], None).unwrap_err().to_string().contains("no readable"));
    }
}
